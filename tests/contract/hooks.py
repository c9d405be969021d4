"""What schemathesis cannot know of the services from their descriptions alone."""

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
    """Make a request fit beyond what a schema can say, where all of it is meant to be as described.

    Nobody settles the orders here: whoever would wait for it waits in vain, and long.

    An idempotency key is one request's, and is not sent with another body; a cursor is signed by
    the service, and not to be made up; to JSON Schema 5.0 is an integer, to those who count money
    it is not.
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
    """Every problem leads to its page, has the status of its kind, and names the request."""
    if PROBLEM not in response.headers.get("content-type", [""])[0]:
        assert response.status_code < 400, "an error that is no problem document"
        return None
    document = response.json()
    kind = _kinds(case.operation.base_url)[document["type"]]
    assert response.status_code == document["status"] == kind["status"]
    assert document["title"] == kind["title"]
    assert [document["request_id"]] == response.headers["x-request-id"]
    return None
