"""A service believes a proxy, and lets scripts of another origin in, only when it was told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask import Flask, request

from shared.web import edge
from support.web import NO_DATABASE, settings_of

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

FORWARDED = {
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "api.shop.example",
    "X-Forwarded-Port": "99",
    "X-Forwarded-Prefix": "/evil",
}
SHOP = "https://shop.example"
CORS_PREFIX = "Access-Control-"


def client(**environ: str) -> FlaskClient:
    app = Flask(__name__)
    edge.register(app, settings_of("orders", NO_DATABASE, **environ))

    @app.post("/seen")
    def seen() -> dict[str, str | None]:
        return {"url": request.url, "address": request.remote_addr}

    return app.test_client()


@pytest.mark.parametrize("environ", [{}, {"TRUSTED_PROXIES": "0"}])
def test_nobody_is_believed_unless_configured(environ: dict[str, str]) -> None:
    seen = client(**environ).post("/seen", headers=FORWARDED).json
    assert seen == {"url": "http://localhost/seen", "address": "127.0.0.1"}


def test_a_trusted_proxy_tells_the_clients_address_and_the_services() -> None:
    """Port and prefix are not believed: the host has the port, and no proxy strips a prefix."""
    seen = client(TRUSTED_PROXIES="1").post("/seen", headers=FORWARDED).json
    assert seen == {"url": "https://api.shop.example/seen", "address": "203.0.113.7"}


def test_what_came_before_the_trusted_proxies_is_not_believed() -> None:
    """A client can send such headers too; each proxy adds to them on the right."""
    headers = {name: f"spoofed, {value}" for name, value in FORWARDED.items()}
    seen = client(TRUSTED_PROXIES="1").post("/seen", headers=headers).json
    assert seen == {"url": "https://api.shop.example/seen", "address": "203.0.113.7"}
    two = client(TRUSTED_PROXIES="2").post("/seen", headers=headers).json
    assert two["address"] == "spoofed"


def cors_headers(response: TestResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers if name.startswith(CORS_PREFIX)}


def preflight(asked: FlaskClient, origin: str) -> TestResponse:
    return asked.options(
        "/seen",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, idempotency-key",
        },
    )


def test_no_other_origin_is_let_in_unless_configured() -> None:
    asked = client()
    assert cors_headers(asked.post("/seen", headers={"Origin": SHOP})) == {}
    assert cors_headers(preflight(asked, SHOP)) == {}


def test_an_origin_that_is_configured_is_let_in() -> None:
    asked = client(CORS_ORIGINS=f"http://localhost:3000,{SHOP}")
    allowed = preflight(asked, SHOP)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == SHOP
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    named = allowed.headers["Access-Control-Allow-Headers"].lower()
    assert "content-type" in named
    assert "idempotency-key" in named
    answer = asked.post("/seen", headers={"Origin": SHOP})
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP
    assert "Location" in answer.headers["Access-Control-Expose-Headers"]
    assert "Origin" in answer.headers["Vary"]
    # Nothing here is known by a cookie, and nothing ever shall be by accident.
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_an_error_can_be_read_by_the_origin_as_well() -> None:
    answer = client(CORS_ORIGINS=SHOP).get("/nothing", headers={"Origin": SHOP})
    assert answer.status_code == 404
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://shop.example.evil.example",
        "https://shopxexample",  # a dot is a dot, not any character
        "http://shop.example",
        "https://shop.example:8443",
        "null",
    ],
)
def test_an_origin_that_looks_alike_is_not_let_in(origin: str) -> None:
    asked = client(CORS_ORIGINS=SHOP)
    assert "Access-Control-Allow-Origin" not in preflight(asked, origin).headers
    assert (
        "Access-Control-Allow-Origin" not in asked.post("/seen", headers={"Origin": origin}).headers
    )


def test_no_browser_guesses_a_type() -> None:
    for path in ("/seen", "/nothing"):
        assert client().get(path).headers["X-Content-Type-Options"] == "nosniff"
