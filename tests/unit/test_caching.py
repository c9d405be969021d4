"""The caching headers of the answers of every route."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from werkzeug.http import parse_set_header

from shared.web.server.error_responses import write_problem
from support.web import NO_DATABASE, open_app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from flask import Flask
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

# A response that sends no body, such as a 304, leaves the requested file of the docs open. The
# garbage collector closes the file, with a warning.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SERVICES = ["payments", "orders"]
SHOP = "https://shop.example"

# The only routes whose answers may be stored, and a URL of each.
STORED = {
    "/": "/",
    "/docs": "/docs",
    "/docs/start.js": "/docs/start.js",
    "/docs/files/<path:filename>": "/docs/files/swagger-ui.css",
    "/openapi.json": "/openapi.json",
    "/problems": "/problems",
    "/problems/<name>": "/problems/not-json",
}
BY_ACCEPT = ["/", "/problems", "/problems/<name>"]


@pytest.fixture(scope="module", params=SERVICES)
def app(request: pytest.FixtureRequest) -> Iterator[Flask]:
    with open_app(request.param, NO_DATABASE) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def vary_of(response: TestResponse) -> set[str]:
    assert len(response.headers.getlist("Vary")) <= 1
    return set(parse_set_header(response.headers.get("Vary")))


def routes(app: Flask) -> list[tuple[str, str, str]]:
    """Return every rule of an app, with each of its methods and a URL."""
    found = []
    for rule in app.url_map.iter_rules():
        address = STORED.get(rule.rule)
        if address is None:
            built = rule.build(dict.fromkeys(rule.arguments, uuid4()))
            assert built is not None
            address = built[1]
        found += [(rule.rule, method, address) for method in rule.methods or ()]
    return found


def test_only_answers_that_are_the_same_for_all_clients_may_be_stored(
    app: Flask, client: FlaskClient
) -> None:
    """There is no database, so most answers are errors, which caches must not store either."""
    for rule, method, address in routes(app):
        body: dict[str, str] | None = {} if method == "POST" else None
        response = client.open(address, method=method, json=body, buffered=True)

        stored = rule in STORED and method in {"GET", "HEAD"}
        expected = "no-cache" if stored else "no-store"
        assert response.headers["Cache-Control"] == expected, (method, address)
        assert ("ETag" in response.headers) == stored, (method, address)
        assert ("Accept" in vary_of(response)) == (stored and rule in BY_ACCEPT), (method, address)


@pytest.mark.parametrize(
    "address", ["/nowhere", "/problems/nothing", "/docs/files/nothing", "/order/x"]
)
def test_a_404_is_not_stored(client: FlaskClient, address: str) -> None:
    response = client.get(address)

    assert response.status_code == 404
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers


@pytest.mark.parametrize("address", STORED.values())
@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_a_stored_answer_is_revalidated_by_its_etag(
    client: FlaskClient, address: str, accept: str
) -> None:
    """A 304 repeats the caching headers of the 200 (RFC 9110, section 15.4.5)."""
    whole = client.get(address, headers={"Accept": accept}, buffered=True)

    again = client.get(address, headers={"Accept": accept, "If-None-Match": whole.headers["ETag"]})

    assert (again.status_code, again.data) == (304, b"")
    for name in ("ETag", "Cache-Control", "Vary"):
        assert again.headers.get(name) == whole.headers.get(name)


@pytest.mark.parametrize("address", [STORED[rule] for rule in BY_ACCEPT])
def test_each_form_of_a_page_has_a_different_etag(client: FlaskClient, address: str) -> None:
    page, data = (
        client.get(address, headers={"Accept": accept}) for accept in ("text/html", "*/*")
    )

    assert page.content_type != data.content_type
    assert page.headers["ETag"] != data.headers["ETag"]


@pytest.mark.parametrize("origins", [SHOP, f"{SHOP},https://other.example"], ids=["one", "two"])
@pytest.mark.parametrize("sent", [{}, {"Origin": SHOP}, {"Origin": "https://evil.example"}])
def test_with_cors_every_answer_varies_by_origin(origins: str, sent: dict[str, str]) -> None:
    """Without `Vary`, a cache could give the answer to a request without an origin to a script."""
    with open_app("orders", NO_DATABASE, CORS_ORIGINS=origins) as app:
        client = app.test_client()

        assert vary_of(client.get("/problems", headers=sent)) == {"Origin", "Accept"}
        assert vary_of(client.get("/livez", headers=sent)) == {"Origin"}
        assert vary_of(client.get("/nowhere", headers=sent)) == {"Origin"}
        assert vary_of(client.options("/orders", headers=sent)) == {"Origin"}


def test_an_error_of_gunicorn_is_not_stored() -> None:
    """Without `Cache-Control`, caches may store a 414 (RFC 9110, section 15.1)."""

    class Client:
        sent = b""

        def gettimeout(self) -> float:
            return 0.0

        def sendall(self, data: bytes) -> None:
            self.sent += data

    client: Any = Client()

    write_problem(client, 414, "URI Too Long", "")

    assert b"\r\nCache-Control: no-store\r\n" in client.sent


@pytest.mark.parametrize("name", ["If-Modified-Since", "If-Unmodified-Since", "If-Range"])
@pytest.mark.parametrize(
    "date",
    [
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 2020 00:00:00 +99999999999999",
        "Mon, 01 Jan 2020 99999999999:00:00 GMT",
    ],
    ids=["year", "zone", "hour"],
)
@pytest.mark.parametrize("address", ["/docs", "/docs/files/swagger-ui.css", "/problems"])
def test_a_date_out_of_range_is_ignored(
    client: FlaskClient, address: str, date: str, name: str
) -> None:
    """See RFC 9110, sections 13.1.3 to 13.1.5."""
    answer = client.get(address, headers={name: date, "Range": "bytes=0-1"})

    assert answer.status_code in {200, 206}
