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
    """Change a request where the schema allows more than the service.

    No request waits for an order to become final, because nothing settles the orders here.

    The other changes are for requests that are meant to be valid. A generated idempotency key is
    replaced, because a key may be used with one body only. A cursor is removed, because only the
    service can sign one. 5.0 is sent as 5, because only JSON Schema counts 5.0 as an integer.
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
def _problem_types(url: str) -> dict[str, dict[str, Any]]:
    listed = requests.get(f"{url}/problems", timeout=60).json()
    return {problem_type["type"]: problem_type for problem_type in listed}


@schemathesis.check
def problem_has_a_listed_type(
    ctx: CheckContext, response: Response, case: Case[Any]
) -> bool | None:
    """Check that a problem has a listed type with its status and title, and names the request."""
    if PROBLEM not in response.headers.get("content-type", [""])[0]:
        assert response.status_code < 400, "the error is not a problem document"
        return None
    document = response.json()
    problem_type = _problem_types(case.operation.base_url)[document["type"]]
    assert response.status_code == document["status"] == problem_type["status"]
    assert document["title"] == problem_type["title"]
    assert [document["request_id"]] == response.headers["x-request-id"]
    return None
