"""Rules for schemathesis that the services' descriptions cannot express."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import requests
import schemathesis

if TYPE_CHECKING:
    from schemathesis import Case, CheckContext, HookContext, Response

PROBLEM = "application/problem+json"
KEY = "Idempotency-Key"
PREFER = "Prefer"
_WAIT = re.compile(r"wait\s*=\s*\"?[0-9]+\"?", re.IGNORECASE)


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Change a request that is meant to be valid, where the schema allows more than the service.

    Nobody settles the orders here, so a request that waits for one would wait long.

    An idempotency key belongs to one request, and is not sent with another body. A cursor is signed
    by the service, so it cannot be generated. JSON Schema counts 5.0 as an integer, but the
    services do not.
    """
    if PREFER in (case.headers or {}):
        case.headers[PREFER] = _WAIT.sub("wait=0", str(case.headers[PREFER]))
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if KEY in (case.headers or {}):
        case.headers[KEY] = str(uuid4())
    (case.query or {}).pop("cursor", None)
    body = case.body
    if isinstance(body, dict) and isinstance(amount := body.get("amount"), float):
        body["amount"] = int(amount)


@cache
def _kinds(service: str) -> dict[str, dict[str, Any]]:
    listed = requests.get(f"{service}/problems", timeout=60).json()
    return {kind["type"]: kind for kind in listed}


@schemathesis.check
def problem_is_of_a_known_kind(
    ctx: CheckContext, response: Response, case: Case[Any]
) -> bool | None:
    """Check that a problem leads to its page, has the status of its type and names the request."""
    if PROBLEM not in response.headers.get("content-type", [""])[0]:
        assert response.status_code < 400, "the error is not a problem document"
        return None
    document = response.json()
    kind = _kinds(case.operation.base_url)[document["type"]]
    assert response.status_code == document["status"] == kind["status"]
    assert document["title"] == kind["title"]
    assert [document["request_id"]] == response.headers["x-request-id"]
    return None
