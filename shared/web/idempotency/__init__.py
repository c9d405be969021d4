"""Idempotency-Key: a repeated request has its effect once.

`request_keys` reads the header and replays answers; `key_store` has the statements; the table is in
`tables` and its migrations in `migrations`. A relay deletes expired keys.
"""
