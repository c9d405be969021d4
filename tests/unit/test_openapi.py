"""The OpenAPI descriptions of the services are valid, complete, and match their schemas."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from support import openapi

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBLEM = "application/problem+json"
ANY = {"400", "408", "413", "414", "421", "422", "431", "500", "503"}
WITH_BODY = ANY | {"415"}
STATUSES = {
    "payments": {
        "POST /accounts": WITH_BODY | {"201", "409"},
        "POST /accounts/{user_id}/deposit": WITH_BODY | {"200", "404", "409"},
        "GET /accounts/balance": ANY | {"200", "404"},
        "GET /accounts/{user_id}/transfers": ANY | {"200", "404"},
        "GET /livez": ANY | {"200"},
        "GET /readyz": ANY | {"200"},
    },
    "orders": {
        "POST /orders": WITH_BODY | {"202", "409"},
        "GET /orders": ANY | {"200"},
        "GET /orders/{order_id}": ANY | {"200", "404"},
        "GET /order/{order_id}": ANY | {"200", "404"},
        "GET /livez": ANY | {"200"},
        "GET /readyz": ANY | {"200"},
    },
}


description = cache(openapi.description)


@pytest.fixture(params=["payments", "orders"])
def service(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def resolve(service: str, part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: Any = description(service)
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return dict(found)


def calls(service: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in description(service)["paths"].items():
        shared = operations.pop("parameters", [])
        for method, operation in operations.items():
            parameters = [*shared, *operation.get("parameters", [])]
            yield f"{method.upper()} {path}", {**operation, "parameters": parameters}
        operations["parameters"] = shared


def media(service: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every request and answer body with its name, schema and examples."""
    for call, operation in calls(service):
        if "requestBody" in operation:
            yield f"{call} request", operation["requestBody"]["content"]["application/json"]
        for status, response in operation["responses"].items():
            for kind in resolve(service, response)["content"].values():
                yield f"{call} {status}", kind


def test_the_committed_copy_is_up_to_date(service: str) -> None:
    """The copy makes a change of the API visible in a diff."""
    copy = openapi.copy_of(service).read_text(encoding="utf-8")
    assert copy == openapi.written(service), "run `make openapi`, and review the difference"


def test_the_description_is_valid_openapi(service: str) -> None:
    OpenAPIV31SpecValidator(description(service)).validate()


def test_the_description_names_the_service_and_its_server(service: str) -> None:
    info = description(service)["info"]
    assert "minor units" in info["description"]
    assert info["license"]["identifier"] == "Apache-2.0"
    assert [server["url"] for server in description(service)["servers"]] == ["/"]
    assert all(tag["description"] for tag in description(service)["tags"])


def test_every_call_names_every_answer(service: str) -> None:
    assert {call: set(operation["responses"]) for call, operation in calls(service)} == STATUSES[
        service
    ]


def test_every_call_is_described(service: str) -> None:
    for call, operation in calls(service):
        assert operation["summary"], call
        assert operation["description"], call
        parameters = [resolve(service, parameter) for parameter in operation["parameters"]]
        assert all(parameter["description"] for parameter in parameters), call
        names = {parameter["name"] for parameter in parameters}
        assert {"X-Request-ID", "traceparent"} <= names, call


def test_every_post_takes_an_idempotency_key_and_describes_its_effect(service: str) -> None:
    for call, operation in calls(service):
        parameters = [resolve(service, parameter) for parameter in operation["parameters"]]
        takes_it = "Idempotency-Key" in {parameter["name"] for parameter in parameters}
        assert takes_it is call.startswith("POST"), call
        for status, response in operation["responses"].items():
            found = resolve(service, response)
            replayed = takes_it and status.startswith("2")
            assert ("Idempotent-Replayed" in found["headers"]) is replayed, (call, status)
            if takes_it and status in {"409", "422"}:
                kind = {"409": "idempotency-key-in-use", "422": "idempotency-key-reused"}[status]
                assert kind in found["description"], (call, status)


def test_every_answer_has_its_headers_and_errors_are_problems(service: str) -> None:
    for call, operation in calls(service):
        for status, response in operation["responses"].items():
            found = resolve(service, response)
            assert found["description"], (call, status)
            assert "X-Request-ID" in found["headers"], (call, status)
            assert ("Retry-After" in found["headers"]) is (status == "503"), (call, status)
            expected = "application/json" if status.startswith("2") else PROBLEM
            assert list(found["content"]) == [expected], (call, status)


def test_every_field_is_described(service: str) -> None:
    for name, schema in description(service)["components"]["schemas"].items():
        for field, described in schema["properties"].items():
            assert described.get("description"), f"{name}.{field}"


def test_every_example_fits_its_schema(service: str) -> None:
    components = description(service)["components"]  # the target of the references
    for where, kind in media(service):
        examples = [each["value"] for each in kind.get("examples", {}).values()]
        examples += [kind["example"]] if "example" in kind else []
        assert examples, where
        validator = OAS31Validator({**kind["schema"], "components": components})
        for example in examples:
            assert list(validator.iter_errors(example)) == [], where


def test_orders_describes_its_headers_with_links() -> None:
    responses = {call: operation["responses"] for call, operation in calls("orders")}
    assert "Location" in responses["POST /orders"]["202"]["headers"]
    assert "Link" in responses["GET /orders"]["200"]["headers"]


def test_statuses_and_amounts_are_exact() -> None:
    schemas = description("orders")["components"]["schemas"]
    assert schemas["Order"]["properties"]["Status"]["enum"] == ["created", "success", "failed"]
    amount = schemas["NewOrder"]["properties"]["amount"]
    assert (amount["type"], amount["format"]) == ("integer", "int64")
    assert (amount["minimum"], amount["maximum"]) == (1, 2**63 - 1)
