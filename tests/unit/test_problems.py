"""Every error of an app becomes a problem document that shows no internal details."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg2
import pytest
from flask import Flask, Response, abort
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import sessionmaker

from settle_outbox.errors import SettleError
from settle_outbox.trace import Trace, current_trace
from shared.web.app import make_app
from shared.web.problems.problem_types import ProblemType
from support.web import NO_DATABASE, problem_of, settings_of

if TYPE_CHECKING:
    from flask.testing import FlaskClient

VALID_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class OddError(SettleError):
    """An error of a use case."""


class OdderError(OddError):
    """A subclass of the error, which `domain` does not list."""


ODD = ProblemType("odd-order", 409, "The order is odd", "It is odd.", "Place an even one.")


@pytest.fixture
def app() -> Flask:
    app = make_app(
        __name__,
        title="Test",
        description="For tests.",
        blueprints=[],
        session_factory=sessionmaker(),
        settings=settings_of("orders", NO_DATABASE, ALLOWED_HOSTS="*"),
        revision="1",
        domain={OddError: ODD},
    )
    raised = {
        "domain": OdderError("The order is odd."),
        "connection": OperationalError("SELECT 1", {}, psycopg2.OperationalError("secret")),
        "pool": PoolTimeoutError("secret"),
        "data": DataError("SELECT 1", {}, psycopg2.DataError("secret")),
        "defect": RuntimeError("secret"),
    }

    @app.post("/raise/<name>")
    def raise_(name: str) -> Response:
        raise raised[name]

    @app.get("/abort/<int:status>")
    def abort_(status: int) -> Response:
        abort(status)

    @app.get("/trace")
    def trace() -> dict[str, str | None]:
        found = current_trace.get()
        return {"request_id": found.request_id, "traceparent": found.traceparent}

    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_an_error_of_a_use_case_has_its_status_and_sentence(client: FlaskClient) -> None:
    """A class that `domain` does not list has the status of its base class."""
    assert problem_of(client.post("/raise/domain"), 409)["detail"] == "The order is odd."


@pytest.mark.parametrize("name", ["connection", "pool"])
def test_the_answer_without_a_database_asks_the_client_to_retry(
    client: FlaskClient, name: str
) -> None:
    response = client.post(f"/raise/{name}")
    problem_of(response, 503)
    assert response.headers["Retry-After"] == "1"
    assert "secret" not in response.text


@pytest.mark.parametrize("name", ["defect", "data"])
def test_the_answer_to_a_defect_has_the_request_id_and_no_details(
    client: FlaskClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.post(f"/raise/{name}", headers={"X-Request-ID": "r-1"})
    assert problem_of(response, 500)["request_id"] == "r-1"
    assert "secret" not in response.text
    assert "Traceback" not in response.text


@pytest.mark.parametrize("status", [400, 404, 405, 408, 413, 414, 415, 417, 431, 500, 501])
def test_an_error_of_the_framework_is_a_problem(client: FlaskClient, status: int) -> None:
    problem_of(client.get(f"/abort/{status}"), status)


@pytest.mark.parametrize("status", [401, 403, 410, 418, 429, 503])
def test_an_undescribed_status_has_a_problem_without_details(
    client: FlaskClient, status: int
) -> None:
    """Its title is the phrase of the status (RFC 9457, section 4.2.1)."""
    response = client.get(f"/abort/{status}")
    assert (response.status_code, response.get_json()["status"]) == (status, status)
    assert response.get_json()["type"] == "about:blank"
    assert response.get_json()["title"] == HTTPStatus(status).phrase


@pytest.mark.parametrize("path", ["/nothing", "/abort//404", "/%00", "/%ff", "/docs/files/no"])
def test_an_unknown_address_is_a_problem(client: FlaskClient, path: str) -> None:
    problem_of(client.get(path), 404)


def test_an_empty_path_is_not_answered_with_an_html_redirect(client: FlaskClient) -> None:
    """A request in absolute form has an empty path: GET http://host HTTP/1.1."""
    problem_of(client.get("/", environ_overrides={"PATH_INFO": ""}), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE", "FOO"])
def test_the_answer_to_a_wrong_method_lists_the_allowed_ones(
    client: FlaskClient, method: str
) -> None:
    response = client.open("/raise/domain", method=method)
    problem_of(response, 405)
    assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


def test_head_has_the_headers_of_a_problem_and_no_body(client: FlaskClient) -> None:
    response = client.head("/nothing")
    assert response.status_code == 404
    assert response.content_type == "application/problem+json"
    assert response.data == b""


def test_the_docs_need_no_other_host(client: FlaskClient) -> None:
    page = client.get("/docs")
    assert "http://" not in page.text
    assert "https://" not in page.text
    needed = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert "docs/files/swagger-ui-bundle.js" in needed
    for name in needed:
        with client.get(f"/{name}") as response:
            assert response.status_code == 200
            assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy


@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
def test_the_index_leads_programs_to_the_docs(client: FlaskClient, accept: str | None) -> None:
    headers = {} if accept is None else {"Accept": accept}
    assert client.get("/", headers=headers).json == {
        "service": "Test",
        "docs": "/docs",
        "openapi": "/openapi.json",
    }
    assert client.get("/openapi.json").get_json()["openapi"] == "3.1.0"


def test_the_index_leads_a_person_to_the_docs(client: FlaskClient) -> None:
    page = client.get("/", headers={"Accept": "text/html,application/xml;q=0.9,*/*;q=0.8"})
    assert page.mimetype == "text/html"
    links = re.findall(r'href="([^"]+)"', page.text)
    assert links[1:] == ["docs", "openapi.json", "problems", "readyz"]


def test_the_instance_of_a_problem_is_its_path_and_request_id(client: FlaskClient) -> None:
    response = client.post("/raise/domain", headers={"X-Request-ID": "r-1"})
    document = problem_of(response, 409)
    assert document["type"] == "/problems/odd-order"
    assert document["title"] == "The order is odd"
    assert document["instance"] == "/raise/domain#r-1"
    assert document["request_id"] == "r-1"


@pytest.mark.parametrize("path", ["/%2F%2Fevil.example", "//evil.example", "/%3Cb%3E%23?x#y"])
def test_the_instance_of_a_problem_stays_at_the_service(client: FlaskClient, path: str) -> None:
    """For any path, the reference stays at the service, and its only fragment is the id."""
    instance = problem_of(client.get(path), 404)["instance"]
    assert urlsplit(instance).netloc == ""
    assert instance.count("#") == 1


def test_a_problem_of_a_service_has_a_page(client: FlaskClient) -> None:
    page = client.get("/problems/odd-order", headers={"Accept": "text/html"})
    assert page.mimetype == "text/html"
    assert "Place an even one." in page.text
    assert client.get("/problems/odd-order").json == {
        "type": "/problems/odd-order",
        "name": "odd-order",
        "status": 409,
        "title": "The order is odd",
        "meaning": "It is odd.",
        "remedy": "Place an even one.",
    }
    problem_of(client.get("/problems/unknown"), 404)


@pytest.mark.parametrize("request_id", ["a", "A-b.c_9", "x" * 128])
def test_a_request_id_is_kept(client: FlaskClient, request_id: str) -> None:
    response = client.get("/trace", headers={"X-Request-ID": request_id})
    assert response.headers["X-Request-ID"] == request_id
    assert response.get_json()["request_id"] == request_id


@pytest.mark.parametrize("request_id", [None, "", "x" * 129, "a b", "ü", 'a"b', "a/b"])
def test_a_missing_or_invalid_request_id_is_replaced(
    client: FlaskClient, request_id: str | None
) -> None:
    headers = {} if request_id is None else {"X-Request-ID": request_id}
    response = client.get("/trace", headers=headers)
    assert response.headers["X-Request-ID"] == response.get_json()["request_id"]
    assert response.get_json()["request_id"] not in {None, request_id}


@pytest.mark.parametrize(
    "traceparent", [VALID_TRACEPARENT, f"cc{VALID_TRACEPARENT[2:]}-what-comes-later"]
)
def test_a_trace_context_is_passed_through(client: FlaskClient, traceparent: str) -> None:
    response = client.get("/trace", headers={"traceparent": traceparent})
    assert response.get_json()["traceparent"] == traceparent


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "x",
        VALID_TRACEPARENT.upper(),
        f"{VALID_TRACEPARENT}-more",
        f"ff{VALID_TRACEPARENT[2:]}",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        VALID_TRACEPARENT[:-1],
    ],
)
def test_a_malformed_trace_context_is_dropped(client: FlaskClient, traceparent: str) -> None:
    response = client.get("/trace", headers={"traceparent": traceparent})
    assert response.get_json()["traceparent"] is None


def test_a_trace_ends_with_its_request(client: FlaskClient) -> None:
    client.get("/trace", headers={"X-Request-ID": "r-1"})
    assert current_trace.get() == Trace()
