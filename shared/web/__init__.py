"""The web layer that all Flask services share.

Start reading at `app.make_app`, which puts the parts together. The rooms:

* `problems`: every error as a problem document (RFC 9457).
* `idempotency`: requests with an Idempotency-Key, and the table that stores their answers.
* `waiting`: the header Prefer, and requests that wait for a result.
* `openapi`: the description of an API, and the pages that show it.
* `server`: gunicorn's worker, which waits for slow clients without blocking a thread.

Nothing is imported here: a relay and a migration use `shared.web.idempotency` without Flask.
"""
