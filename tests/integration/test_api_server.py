"""The orders API in the deployed gunicorn: behaviour that needs a real server and sockets."""

from __future__ import annotations

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests

from shared.web.json_body import MAX_BYTES
from shared.web.problems.documents import MEDIA_TYPE
from support.openapi import description
from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


CHUNKS = {True: {"Transfer-Encoding": "chunked"}, False: {}}
BODY = b"x" * 10_000_000


@pytest.fixture(scope="module")
def port(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start the API in gunicorn, and yield its port."""
    log = tmp_path_factory.mktemp("gunicorn") / "orders-api.log"
    with serve("orders", database_url, log) as url:
        yield int(url.rpartition(":")[2])


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/orders", 413), ("PUT", "/orders", 405), ("POST", "/x", 404), ("GET", "/x", 404)],
)
def test_a_client_that_sends_10_mb_receives_the_answer(
    port: int, method: str, path: str, status: int, *, connection: str, chunked: bool
) -> None:
    """The server reads the rest of the body, so the connection is not reset.

    `http.client` shows this: if it cannot send the whole body, it reads no answer.
    """
    client = HTTPConnection("127.0.0.1", port, timeout=30)
    with closing(client):
        headers = {"Content-Type": "application/json", "Connection": connection}
        body = iter([BODY]) if chunked else BODY
        client.request(method, path, body, headers | CHUNKS[chunked], encode_chunked=chunked)
        response = client.getresponse()
        assert response.status == status
        assert response.headers["Content-Type"] == MEDIA_TYPE
        assert json.load(response)["status"] == status


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize(("more", "status"), [(0, 202), (1, 413)])
def test_the_size_limit_of_a_body_is_the_same_with_and_without_chunks(
    port: int, *, more: int, status: int, chunked: bool
) -> None:
    body = json.dumps({"user_id": str(uuid4()), "amount": 1}).encode().ljust(MAX_BYTES + more)

    response = requests.post(
        f"http://127.0.0.1:{port}/orders",
        data=iter([body[:1000], body[1000:]]) if chunked else body,
        headers={"Content-Type": "application/json"},
        timeout=30,
    )

    assert response.status_code == status
    if status == 413:
        assert response.json()["detail"] == "The body is larger than 128 KiB."


def test_a_large_body_of_a_get_is_refused(port: int) -> None:
    response = requests.get(f"http://127.0.0.1:{port}/orders", data=BODY, timeout=30)
    assert response.status_code == 413


CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: localhost\r\nExpect: much\r\n\r\n",
        b"POST /orders HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"zz\r\n",
        b"POST /orders HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"5\r\nabcdeXX\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"5\r\nabcdeXX\r\n",
    ],
)
def test_malformed_http_gets_a_problem_document(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(sent)
        response = HTTPResponse(client)
        response.begin()
        document = json.load(response)
    assert 400 <= response.status < 500
    documented = description("orders")["paths"]["/orders"]["get"]["responses"]
    # 404 and 417 are documented once for all calls.
    assert str(response.status) in {*documented, "404", "417"}
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert document["request_id"] == response.headers["X-Request-ID"]
    page = requests.get(f"http://127.0.0.1:{port}{document['type']}", timeout=30)
    assert page.json()["status"] == document["status"]


def test_forwarded_headers_are_not_trusted_by_default(port: int) -> None:
    """By default, gunicorn trusts the forwarded headers of 127.0.0.1."""
    for _ in range(2):
        place(port)
    headers = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Ssl": "on",
        "X-Forwarded-Host": "evil.example",
        "Script-Name": "/evil",
    }
    url = f"http://127.0.0.1:{port}/orders"
    answer = requests.get(url, params={"limit": "1"}, headers=headers, timeout=30)
    assert answer.headers["Link"].startswith(f"<{url}?")


def place(port: int) -> requests.Response:
    body = {"user_id": str(uuid4()), "amount": 1}
    return requests.post(f"http://127.0.0.1:{port}/orders", json=body, timeout=30)


def test_100_concurrent_orders_are_queued(port: int) -> None:
    with ThreadPoolExecutor(100) as pool:
        answers = Counter(pool.map(lambda _: place(port).status_code, range(100)))
    assert answers == {202: 100}
