"""Idempotency keys: what a request with a key did and was answered, in its own transaction.

The keys are kept in the service's database. `shared.web.idempotency` makes and replays them; a
relay's maintenance removes those past their retention.
"""
