"""The name under which a request comes: whose requests are carried out, and where links lead."""

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

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
LIST = "/orders?limit=1"


class Answer(NamedTuple):
    """What came back: the status, the address in its Link, and the document."""

    status: int
    link: str | None
    document: Any


def send(port: int, request_line: str, *headers: bytes, body: bytes = b"") -> Answer:
    """Send a request as it is, and read the answer."""
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
    """Where an API listens that answers to any host, behind a proxy; with a list of two pages."""
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
        "xn--a",  # of no letters at all
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
def test_a_link_is_relative_where_the_host_cannot_be_in_an_address(port: int, host: bytes) -> None:
    """A link may be a relative reference (RFC 8288, section 3.1)."""
    answer = send(port, f"GET {LIST} HTTP/1.1", b"Host: " + host)

    assert answer[:2] == (200, "/orders")


@pytest.mark.parametrize(
    "host", [b"localhost:abc", b"a@b", b"\xff", b"h/evil", b"h, evil", b"[::1", b"<>"]
)
def test_what_is_no_host_is_in_no_link(port: int, host: bytes) -> None:
    answer = send(port, f"GET {LIST} HTTP/1.1", b"Host: " + host)

    assert answer.status == 400 or answer[:2] == (200, "/orders")


@pytest.mark.parametrize("host", ["x" * 64, "x" * 8000, ".localhost", "a..b"])
def test_a_label_that_no_name_can_have_is_a_bad_request(port: int, host: str) -> None:
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
def test_what_a_proxy_forwards_cannot_lead_astray(port: int, header: bytes, link: str) -> None:
    answer = send(port, f"GET {LIST} HTTP/1.1", b"Host: localhost", header)

    assert answer[:2] == (200, link)


@pytest.mark.parametrize("target", ["//evil.example/orders", "/%2Fevil.example/orders"])
def test_a_link_does_not_take_a_host_from_the_path(port: int, target: str) -> None:
    assert send(port, f"GET {target}?limit=1 HTTP/1.1", b"Host: a_b").status == 404


def hosts_warned_of(log: Path) -> list[str]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["level"] for line in lines if line["event"] == "web.any_host_allowed"]


def test_a_hostile_page_deposits_nothing(payments_url: str, tmp_path: Path) -> None:
    """From a browser of this machine: under a name that leads here, or from a site of its own."""
    log = tmp_path / "api.log"
    deposit = f"POST /accounts/{USER}/deposit HTTP/1.1"
    json_type = b"Content-Type: application/json"
    body = b'{"amount": 5}'
    with serve("payments", payments_url, log) as url:
        port = int(url.rpartition(":")[2])
        requests.post(f"{url}/accounts", json={"user_id": USER}, timeout=10)

        # DNS rebinding: of one origin with the service, so it may send what it likes.
        rebound = send(
            port,
            deposit,
            b"Host: evil.example:%d" % port,
            b"X-Forwarded-Host: localhost",
            json_type,
            body=body,
        )
        # Another origin, which may send this much unasked (the Fetch standard, section 2.2.2).
        unasked = [
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
        # And asks for more.
        asked = requests.options(
            f"{url}/accounts/{USER}/deposit",
            headers={
                "Origin": "http://evil.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
            timeout=10,
        )
        balance = requests.get(f"{url}/accounts/balance?user_id={USER}", timeout=10).json()
        probe = requests.get(f"{url}/readyz", headers={"Host": "10.1.2.3"}, timeout=10)

    assert rebound.status == 421
    assert rebound.document["type"] == "/problems/misdirected-request"
    assert "ALLOWED_HOSTS" in rebound.document["detail"]
    assert f"'evil.example:{port}'" in rebound.document["detail"]
    assert unasked == [415] * len(unasked)
    assert not [name for name in asked.headers if name.startswith("Access-Control-")]
    assert balance == {"balance": 0}
    assert probe.status_code == 200
    assert hosts_warned_of(log) == []


@pytest.mark.parametrize(
    ("variables", "warnings"),
    [({}, ["warning"]), ({"ALLOWED_HOSTS": "pay.example"}, []), ({"ALLOWED_HOSTS": "*"}, [])],
)
def test_an_api_on_the_network_warns_once_that_it_answers_to_any_host(
    orders_url: str, tmp_path: Path, variables: dict[str, str], warnings: list[str]
) -> None:
    log = tmp_path / "api.log"

    with serve("orders", orders_url, log, BIND_ADDRESS="0.0.0.0", **variables) as url:
        answer = requests.get(f"{url}/orders", headers={"Host": "orders:8081"}, timeout=10)

    assert answer.status_code == (421 if "pay.example" in variables.values() else 200)
    assert hosts_warned_of(log) == warnings
