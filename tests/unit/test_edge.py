"""Allowed hosts, trusted proxies and CORS, as configured."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import pytest
from flask import Flask, Response, request

from shared.web import middleware, proxy_and_cors
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
    proxy_and_cors.register(app, settings_of("orders", NO_DATABASE, **environ))
    middleware.register(app)

    @app.post("/seen")
    def seen() -> dict[str, str | None]:
        return {"url": request.url, "address": request.remote_addr}

    @app.get("/livez")
    @app.get("/readyz")
    @app.get("/varied")
    def varied() -> Response:
        return Response("varied", headers={"Vary": "Prefer"})

    return app.test_client()


@pytest.mark.parametrize("environ", [{}, {"TRUSTED_PROXIES": "0"}])
def test_no_proxy_is_trusted_unless_configured(environ: dict[str, str]) -> None:
    seen = client(**environ).post("/seen", headers=FORWARDED).json
    assert seen == {"url": "http://localhost/seen", "address": "127.0.0.1"}


def test_a_trusted_proxy_sets_the_addresses_of_client_and_service() -> None:
    """X-Forwarded-Port and X-Forwarded-Prefix are not used. The host contains the port."""
    seen = client(TRUSTED_PROXIES="1").post("/seen", headers=FORWARDED).json
    assert seen == {"url": "https://api.shop.example/seen", "address": "203.0.113.7"}


def test_values_from_before_the_trusted_proxies_are_ignored() -> None:
    """A client can send such headers itself. Each proxy appends its value on the right."""
    headers = {name: f"spoofed, {value}" for name, value in FORWARDED.items()}
    seen = client(TRUSTED_PROXIES="1").post("/seen", headers=headers).json
    assert seen == {"url": "https://api.shop.example/seen", "address": "203.0.113.7"}
    two = client(TRUSTED_PROXIES="2").post("/seen", headers=headers).get_json()
    assert two["address"] == "spoofed"


LOOPBACK = [
    "localhost",
    "LocalHost:8081",
    "localhost.",
    "localhost:",
    "localhost:99999",  # ports are not compared
    "pay.localhost",
    "127.0.0.1",
    "127.0.0.1:8081",
    "127.8.9.1",
    "[::1]:8081",
]
OTHERS = [
    "evil.example",
    "evil.example:8081",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evillocalhost",
    "127.evil.example",
    "xn--e1afmkfd.xn--p1ai",
    "0.0.0.0",
    "0",
    "127.1",
    "2130706433",
    "192.0.2.7",
    "[::]",
    "[::1]1",
    "[::ffff:127.0.0.1]",
    "::1",
    "localhost:evil.example",
    "localhost:8081:80",
    "localhost@evil.example",
    "evil.example@localhost",
    "localhost/",
    "localhost, evil.example",
    "localhost\t",
    "loc%61lhost",
    "\xff",
    "",
]
# An empty label, or one of more than 63 characters (RFC 1035, section 2.3.4). werkzeug rejects
# these.
INVALID_NAMES = ["localhost..", ".localhost", "x" * 64, "x" * 8000]


def status_of(
    api: FlaskClient, host: str, path: str = "/varied", *, forwarded: str | None = None
) -> int:
    """Return the status of a request to a host. A proxy may have forwarded it for another host."""
    environ = {"HTTP_HOST": host}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_HOST"] = forwarded
    return api.get(path, environ_overrides=environ).status_code


@pytest.mark.parametrize("variables", [{}, {"ALLOWED_HOSTS": "pay.example"}])
@pytest.mark.parametrize("host", LOOPBACK)
def test_names_of_this_machine_are_always_allowed(host: str, variables: dict[str, str]) -> None:
    assert status_of(client(**variables), host) == 200


@pytest.mark.parametrize("variables", [{}, {"ALLOWED_HOSTS": "pay.example"}])
@pytest.mark.parametrize("host", OTHERS + INVALID_NAMES)
def test_an_unknown_host_is_refused(host: str, variables: dict[str, str]) -> None:
    """In a browser, a page of any host reaches the service if the host resolves to this machine."""
    assert status_of(client(**variables), host) == 421


@pytest.mark.parametrize(
    "host", ["pay.example", "PAY.example:443", "pay.example.", "[2001:db8::7]"]
)
def test_a_host_that_is_configured_is_allowed(host: str) -> None:
    api = client(ALLOWED_HOSTS="pay.example,[2001:db8::7]", BIND_ADDRESS="0.0.0.0")

    assert status_of(api, host) == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Other.example:8081", "other.example"),
        ("[2001:db8::8]:80", "[2001:db8::8]"),
        ("other.example", "other.example"),
    ],
)
def test_the_answer_to_a_refused_host_says_how_to_allow_it(host: str, name: str) -> None:
    answer = client().post("/seen", environ_overrides={"HTTP_HOST": host})
    detail = html.unescape(answer.text)

    assert f"the host '{host}'" in detail
    assert f"add {name} to ALLOWED_HOSTS (without the port) and restart" in detail
    assert status_of(client(ALLOWED_HOSTS=name), host) == 200


def test_an_invalid_host_cannot_be_allowed() -> None:
    answer = client().post("/seen", environ_overrides={"HTTP_HOST": "a b"})

    assert answer.status_code == 421
    assert "ALLOWED_HOSTS" not in answer.text


@pytest.mark.parametrize("host", ["evil.example", "sub.pay.example", "xpay.example", "pay.exampl"])
def test_a_similar_host_is_refused(host: str) -> None:
    api = client(ALLOWED_HOSTS="pay.example", BIND_ADDRESS="0.0.0.0")

    assert status_of(api, host) == 421


@pytest.mark.parametrize(
    "variables", [{"ALLOWED_HOSTS": "*"}, {"BIND_ADDRESS": "0.0.0.0"}, {"TRUSTED_PROXIES": "1"}]
)
@pytest.mark.parametrize("host", OTHERS)
def test_any_host_is_allowed_if_the_services_names_are_unknown(
    host: str, variables: dict[str, str]
) -> None:
    assert status_of(client(**variables), host) == 200


@pytest.mark.parametrize("host", INVALID_NAMES)
def test_an_invalid_host_is_a_bad_request(host: str) -> None:
    assert status_of(client(ALLOWED_HOSTS="*"), host) == 400


def test_behind_a_proxy_both_hosts_are_compared() -> None:
    """A page that reaches the service without the proxy can send any X-Forwarded-Host."""
    api = client(ALLOWED_HOSTS="pay.example,orders", TRUSTED_PROXIES="1")

    assert status_of(api, "pay.example") == 200
    assert status_of(api, "pay.example", forwarded="pay.example") == 200
    assert status_of(api, "orders:8081", forwarded="pay.example") == 200
    assert status_of(api, "127.0.0.1:8081", forwarded="pay.example") == 200
    assert status_of(api, "127.0.0.1:8081", forwarded="evil.example, pay.example") == 200
    assert status_of(api, "evil.example:8081", forwarded="pay.example") == 421
    assert status_of(api, "pay.example", forwarded="evil.example") == 421
    assert status_of(api, "pay.example", forwarded="pay.example, evil.example") == 421


def test_a_forwarded_host_without_a_trusted_proxy_is_ignored() -> None:
    assert status_of(client(), "localhost", forwarded="evil.example") == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_may_use_any_host(path: str) -> None:
    """A load balancer sends its own address as the host, and often cannot be configured."""
    assert status_of(client(), "10.1.2.3:8081", path) == 200


def test_a_request_without_a_host_is_allowed() -> None:
    """HTTP/1.0 clients may leave out the Host header, but browsers always send it."""
    answer = client().post("/seen", environ_overrides={"HTTP_HOST": None})

    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/seen", "/nothing", "/livez/", "//livez", "/livez/x"])
def test_every_other_path_refuses_an_unknown_host(path: str) -> None:
    api = client(CORS_ORIGINS=SHOP)

    for method in ("GET", "POST", "OPTIONS", "FOO"):
        answer = api.open(path, method=method, environ_overrides={"HTTP_HOST": "evil.example"})
        assert answer.status_code == 421


def cors_headers(response: TestResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers if name.startswith(CORS_PREFIX)}


def preflight(api: FlaskClient, origin: str) -> TestResponse:
    return api.options(
        "/seen",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type, idempotency-key",
        },
    )


def test_no_other_origin_is_allowed_unless_configured() -> None:
    api = client()
    assert cors_headers(api.post("/seen", headers={"Origin": SHOP})) == {}
    assert cors_headers(preflight(api, SHOP)) == {}


def test_a_configured_origin_is_allowed() -> None:
    api = client(CORS_ORIGINS=f"http://localhost:3000,{SHOP}")
    allowed = preflight(api, SHOP)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == SHOP
    assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
    named = allowed.headers["Access-Control-Allow-Headers"].lower()
    assert "content-type" in named
    assert "idempotency-key" in named
    answer = api.post("/seen", headers={"Origin": SHOP})
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP
    assert "Location" in answer.headers["Access-Control-Expose-Headers"]
    assert "Origin" in answer.headers["Vary"]
    # No cookie identifies a client, so credentials must not be allowed.
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_configured_origin_can_read_errors() -> None:
    answer = client(CORS_ORIGINS=SHOP).get("/nothing", headers={"Origin": SHOP})
    assert answer.status_code == 404
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://shop.example.evil.example",
        "https://shopxexample",  # the dot must match only a dot
        "http://shop.example",
        "https://shop.example:8443",
        "null",
    ],
)
def test_a_similar_origin_is_not_allowed(origin: str) -> None:
    api = client(CORS_ORIGINS=SHOP)
    assert "Access-Control-Allow-Origin" not in preflight(api, origin).headers
    assert (
        "Access-Control-Allow-Origin" not in api.post("/seen", headers={"Origin": origin}).headers
    )


@pytest.mark.parametrize(
    ("configured", "others"),
    [
        (
            "http://[fe80::1]",
            ["http://evil.example", "http://f", "http://fe80::1", "http://[fe80::1]:1"],
        ),
        ("http://[::1]:3000", ["http://:", "http://[::1]", "http://1:3000", "http://[::1]:30000"]),
        ("https://a.shop.example", ["https://abshop.example", "https://A.shop.example"]),
        ("https://shop.example:8443", ["https://shop.example", "https://shop.example:84430"]),
    ],
)
def test_origins_are_compared_as_strings(configured: str, others: list[str]) -> None:
    """In a pattern, the brackets of an IPv6 address would be a set of characters."""
    api = client(CORS_ORIGINS=configured)

    allowed = api.post("/seen", headers={"Origin": configured})
    assert allowed.headers["Access-Control-Allow-Origin"] == configured
    for origin in [*others, f"{configured}, {configured}", f" {configured}", f"{configured}/", ""]:
        assert cors_headers(api.post("/seen", headers={"Origin": origin})) == {}
        assert cors_headers(preflight(api, origin)) == {}


@pytest.mark.parametrize("headers", [{}, {"Origin": SHOP}, {"Origin": "https://evil.example"}])
def test_an_answer_varies_by_origin(headers: dict[str, str]) -> None:
    """Every answer does, even if only one origin is allowed (Fetch standard, section 3.2.5)."""
    api = client(CORS_ORIGINS=SHOP)

    assert api.post("/seen", headers=headers).headers["Vary"] == "Origin"
    assert api.get("/nothing", headers=headers).headers["Vary"] == "Origin"
    assert api.options("/seen", headers=headers).headers["Vary"] == "Origin"
    assert api.get("/varied", headers=headers).headers["Vary"] == "Prefer, Origin"


def test_browsers_must_not_guess_content_types() -> None:
    for path in ("/seen", "/nothing"):
        assert client().get(path).headers["X-Content-Type-Options"] == "nosniff"
