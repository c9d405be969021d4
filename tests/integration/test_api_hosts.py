"""Host and forwarded headers: which requests are executed, and which host a link names."""

from __future__ import annotations

import json
import re
import socket
from contextlib import closing
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import pytest
import requests

from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
LIST = "/orders?limit=1"


class Answer(NamedTuple):
    """The status, the address in the Link header without its query, and the JSON document."""

    status: int
    link: str | None
    document: Any


def send(port: int, request_line: str, *headers: bytes, body: bytes = b"") -> Answer:
    """Send a request unchanged, and return its answer."""
    lines = [request_line.encode(), *headers, b"Content-Length: %d" % len(body), b"", body]
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as client:
        client.sendall(b"\r\n".join(lines))
        response = HTTPResponse(client)
        response.begin()
        document = json.load(response)
    link = response.headers["Link"]
    address = (
        re.fullmatch(r'<([^<>]+)\?limit=1&cursor=[\w.-]+>; rel="next"', link) if link else None
    )
    return Answer(response.status, address[1] if address else link, document)


@pytest.fixture(scope="module")
def port(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start an API that accepts any host and trusts one proxy, with two orders to list."""
    log = tmp_path_factory.mktemp("hosts") / "api.log"
    with serve("orders", database_url, log, ALLOWED_HOSTS="*", TRUSTED_PROXIES="1") as url:
        for _ in range(2):
            order = {"user_id": str(uuid4()), "amount": 1}
            assert requests.post(f"{url}/orders", json=order, timeout=10).status_code == 202
        yield int(url.rpartition(":")[2])


@pytest.mark.parametrize(
    "host",
    [
        "xn--e1afmkfd.xn--p1ai",  # Cyrillic
        "xn--a",  # decodes to no letters
        "xn--a.example:8081",
        "XN--E1AFMKFD.xn--p1ai",
        "Pay.Example:8081",
        "pay.example.",
        "127.0.0.1:1",
        "[::1]:8081",
        "1.2.3.4.5",
    ],
)
def test_a_link_has_the_host_as_it_was_received(port: int, host: str) -> None:
    answer = send(port, f"GET {LIST} HTTP/1.1", b"Host: " + host.encode())

    assert answer[:2] == (200, f"http://{host}/orders")


@pytest.mark.parametrize("host", [b"a_b", b"localhost:99999", b"localhost:", b"%6cocalhost"])
def test_a_link_is_relative_when_the_host_is_not_valid_in_a_url(port: int, host: bytes) -> None:
    """A link may be a relative reference (RFC 8288, section 3.1)."""
    answer = send(port, f"GET {LIST} HTTP/1.1", b"Host: " + host)

    assert answer[:2] == (200, "/orders")


@pytest.mark.parametrize(
    "host", [b"localhost:abc", b"a@b", b"\xff", b"h/evil", b"h, evil", b"[::1", b"<>"]
)
def test_an_invalid_host_is_in_no_link(port: int, host: bytes) -> None:
    answer = send(port, f"GET {LIST} HTTP/1.1", b"Host: " + host)

    assert answer.status == 400 or answer[:2] == (200, "/orders")


@pytest.mark.parametrize("host", ["x" * 64, "x" * 8000, ".localhost", "a..b"])
def test_a_host_with_an_invalid_label_is_a_bad_request(port: int, host: str) -> None:
    assert send(port, f"GET {LIST} HTTP/1.1", b"Host: " + host.encode()).status == 400


@pytest.mark.parametrize(
    ("header", "link"),
    [
        (b"X-Forwarded-Proto: https", "https://localhost/orders"),
        (b"X-Forwarded-Proto: javascript, https", "https://localhost/orders"),
        (b"X-Forwarded-Proto: javascript", "/orders"),
        (b"X-Forwarded-Proto: https://evil.example/", "/orders"),
        (b"X-Forwarded-Proto: ht\ttps", "/orders"),
        (b"X-Forwarded-Proto: \xff", "/orders"),
        (b"X-Forwarded-Proto:", "http://localhost/orders"),
        (b"X-Forwarded-Host: evil.example, pay.example", "http://pay.example/orders"),
        (b"X-Forwarded-Host: xn--e1afmkfd.xn--p1ai", "http://xn--e1afmkfd.xn--p1ai/orders"),
        (b"X-Forwarded-Host: pay.example/evil", "/orders"),
        (b"X-Forwarded-Host: pay.example:99999", "/orders"),
        (b"X-Forwarded-Host: pay.example:x", "/orders"),
        (b"X-Forwarded-Host: [::1", "/orders"),
        (b'X-Forwarded-Host: "', "http://localhost/orders"),
        (b"X-Forwarded-Host: \xff", "/orders"),
        (b"X-Forwarded-Host: ,", "http://localhost/orders"),
        (b"X-Forwarded-Host:", "http://localhost/orders"),
        (b"X-Forwarded-For: \xff, <>", "http://localhost/orders"),
        (b"X-Forwarded-Prefix: //evil.example", "http://localhost/orders"),
        (b"X-Forwarded-Port: 99", "http://localhost/orders"),
        (b"Script-Name: //evil.example", "http://localhost/orders"),
    ],
)
def test_a_link_uses_only_valid_forwarded_headers(port: int, header: bytes, link: str) -> None:
    answer = send(port, f"GET {LIST} HTTP/1.1", b"Host: localhost", header)

    assert answer[:2] == (200, link)


@pytest.mark.parametrize("target", ["//evil.example/orders", "/%2Fevil.example/orders"])
def test_a_link_does_not_take_a_host_from_the_path(port: int, target: str) -> None:
    assert send(port, f"GET {target}?limit=1 HTTP/1.1", b"Host: a_b").status == 404


def host_warning_levels(log: Path) -> list[str]:
    """Return the level of each log line that warns of accepting any host."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["level"] for line in lines if line["event"] == "web.any_host_allowed"]


def test_a_hostile_web_page_cannot_deposit(payments_url: str, tmp_path: Path) -> None:
    """The page runs in a browser on this machine. It uses DNS rebinding, or has another origin."""
    log = tmp_path / "api.log"
    deposit = f"POST /accounts/{USER}/deposit HTTP/1.1"
    json_type = b"Content-Type: application/json"
    body = b'{"amount": 5}'
    with serve("payments", payments_url, log) as url:
        port = int(url.rpartition(":")[2])
        requests.post(f"{url}/accounts", json={"user_id": USER}, timeout=10)

        # DNS rebinding: the page has the service's origin, so it may send any request.
        rebound = send(
            port,
            deposit,
            b"Host: evil.example:%d" % port,
            b"X-Forwarded-Host: localhost",
            json_type,
            body=body,
        )
        # A page of another origin may send these media types without a preflight (the Fetch
        # standard, section 2.2.2).
        without_preflight = [
            send(
                port,
                deposit,
                b"Host: localhost:%d" % port,
                b"Origin: http://evil.example",
                b"Content-Type: " + content_type,
                body=body,
            ).status
            for content_type in (
                b"text/plain",
                b"text/plain; charset=application/json",
                b"text/plain;application/json",
                b"text/plain, application/json",
                b"application/x-www-form-urlencoded",
                b"multipart/form-data; boundary=application/json",
                b"",
            )
        ]
        # Before it sends other requests of that page, the browser sends a preflight.
        preflight = requests.options(
            f"{url}/accounts/{USER}/deposit",
            headers={
                "Origin": "http://evil.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
            timeout=10,
        )
        balance = requests.get(f"{url}/accounts/balance?user_id={USER}", timeout=10).json()
        # Probes may name any host.
        probe = requests.get(f"{url}/readyz", headers={"Host": "10.1.2.3"}, timeout=10)

    assert rebound.status == 421
    assert rebound.document["type"] == "/problems/misdirected-request"
    assert "ALLOWED_HOSTS" in rebound.document["detail"]
    assert f"'evil.example:{port}'" in rebound.document["detail"]
    assert without_preflight == [415] * len(without_preflight)
    assert not [name for name in preflight.headers if name.startswith("Access-Control-")]
    assert balance == {"balance": 0}
    assert probe.status_code == 200
    assert host_warning_levels(log) == []


@pytest.mark.parametrize(
    ("variables", "warnings"),
    [({}, ["warning"]), ({"ALLOWED_HOSTS": "pay.example"}, []), ({"ALLOWED_HOSTS": "*"}, [])],
)
def test_an_api_on_the_network_warns_once_if_it_accepts_any_host_by_default(
    orders_url: str, tmp_path: Path, variables: dict[str, str], warnings: list[str]
) -> None:
    log = tmp_path / "api.log"

    with serve("orders", orders_url, log, BIND_ADDRESS="0.0.0.0", **variables) as url:
        answer = requests.get(f"{url}/orders", headers={"Host": "orders:8081"}, timeout=10)

    assert answer.status_code == (421 if "pay.example" in variables.values() else 200)
    assert host_warning_levels(log) == warnings
