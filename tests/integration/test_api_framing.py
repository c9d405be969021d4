"""The deployed server refuses requests that violate HTTP/1.1 (RFC 9112), rule by rule.

After a refused request, the server cannot know where the next request starts. So the tests send a
valid order after it on the same connection, and the server must not execute this order. After an
incomplete request, the client ends the connection instead.
"""

from __future__ import annotations

import io
import json
import socket
from http.client import HTTPResponse
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from shared.web.problems.documents import MEDIA_TYPE
from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


USER = str(uuid4())
BODY = json.dumps({"user_id": USER, "amount": 5}).encode()
LENGTH = str(len(BODY)).encode()
LINE = b"POST /orders HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
HEAD = LINE + HOST + JSON
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SIZE = b"%x" % len(BODY)  # of the one chunk
CHUNK = SIZE + b"\r\n" + BODY + b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"
ORDER = HEAD + b"Content-Length: " + LENGTH + b"\r\n\r\n" + BODY


def with_header(header: bytes) -> bytes:
    """Return an order with one more header."""
    return HEAD + header + b"\r\nContent-Length: " + LENGTH + b"\r\n\r\n" + BODY


def with_length(header: bytes) -> bytes:
    """Return an order with these header lines in place of Content-Length."""
    return HEAD + header + b"\r\n\r\n" + BODY


def with_line(line: bytes) -> bytes:
    """Return an order with this request line."""
    return line + b"\r\n" + ORDER.removeprefix(LINE)


def with_coding(coding: bytes, further: bytes = b"") -> bytes:
    """Return an order in chunks, with this Transfer-Encoding."""
    return HEAD + b"Transfer-Encoding: " + coding + b"\r\n" + further + b"\r\n" + CHUNK + LAST_CHUNK


# Section 2.2: line ends and white space between the parts of a message.
MESSAGE = {
    "bare LF after the first line": ORDER.replace(b"\r\n", b"\n", 1),
    "bare LF after a header": ORDER.replace(b"Host: localhost\r\n", b"Host: localhost\n"),
    "bare LF everywhere": ORDER.replace(b"\r\n", b"\n"),
    "bare CR in the first line": with_line(b"POST /orders HTTP/1.1\r"),
    "bare CR in a header": with_header(b"X-A: a\rX-B: b"),
    "white space before the first header": LINE + b" X-A: a\r\n" + ORDER.removeprefix(LINE),
    "two empty lines before the first line": b"\r\n\r\n" + ORDER,
}
# Section 3: the request line.
LINES = {
    "no version": with_line(b"POST /orders"),
    "two spaces": with_line(b"POST  /orders HTTP/1.1"),
    "a tab": with_line(b"POST\t/orders\tHTTP/1.1"),
    "white space at the end": with_line(b"POST /orders HTTP/1.1 "),
    "a space in the address": with_line(b"POST /ord ers HTTP/1.1"),
    "an address that is not ASCII": with_line(b"POST /\xff HTTP/1.1"),
    "NUL in the address": with_line(b"POST /orders\0 HTTP/1.1"),
    "a method that is not a token": with_line(b"PO(ST /orders HTTP/1.1"),
    "a fragment": with_line(b"POST /orders#x HTTP/1.1"),
    "neither path nor URI": with_line(b"POST orders HTTP/1.1"),
    "a scheme without slashes": with_line(b"POST http:/orders HTTP/1.1"),
    "another scheme": with_line(b"POST ftp://x/orders HTTP/1.1"),
    "a URI without host": with_line(b"POST http:///orders HTTP/1.1"),
    "a URI with only a port": with_line(b"POST http://:80/orders HTTP/1.1"),
    "a URI with a user": with_line(b"POST http://me@x/orders HTTP/1.1"),
    "a host and port": with_line(b"POST x:80 HTTP/1.1"),
    "CONNECT": with_line(b"CONNECT x:80 HTTP/1.1"),
    "CONNECT with a path": with_line(b"CONNECT /orders HTTP/1.1"),
    "an asterisk": with_line(b"POST * HTTP/1.1"),
    "a version in small letters": with_line(b"POST /orders http/1.1"),
    "a minor version of two digits": with_line(b"POST /orders HTTP/1.10"),
    "a version without a minor version": with_line(b"POST /orders HTTP/1"),
}
# Section 3.2: Host.
HOSTS = {
    "no host": ORDER.replace(HOST, b""),
    "an empty host": ORDER.replace(HOST, b"Host:\r\n"),
    "a blank host": ORDER.replace(HOST, b"Host:  \r\n"),
    "two different hosts": ORDER.replace(HOST, HOST + b"Host: y\r\n"),
    "the same host twice": ORDER.replace(HOST, HOST + HOST),
    "a URI without the header Host": with_line(b"POST http://localhost/orders HTTP/1.1").replace(
        HOST, b""
    ),
}
# Section 5: headers.
HEADERS = {
    "no colon": with_header(b"X-A"),
    "no name": with_header(b": a"),
    "white space before the colon": with_header(b"X-A : a"),
    "a tab before the colon": with_header(b"X-A\t: a"),
    "white space before the colon of a length": with_length(b"Content-Length : " + LENGTH),
    "a name that is not a token": with_header(b"X(A): a"),
    "a name that is not ASCII": with_header(b"X\xe9: a"),
    "a folded line": with_header(b"X-A: a\r\n b"),
    "NUL in a value": with_header(b"X-A: a\0b"),
    "a control character in a value": with_header(b"X-A: a\x07b"),
    "two media types": with_header(JSON.rstrip()),
}
# Section 6: the length of the body.
LENGTHS = {
    "two different lengths": with_length(b"Content-Length: 5\r\nContent-Length: " + LENGTH),
    "the same length twice": with_length(
        b"Content-Length: %s\r\nContent-Length: %s" % (LENGTH, LENGTH)
    ),
    "a list of equal lengths": with_length(b"Content-Length: %s, %s" % (LENGTH, LENGTH)),
    "a list of different lengths": with_length(b"Content-Length: 5, " + LENGTH),
    "a length with a sign": with_length(b"Content-Length: +" + LENGTH),
    "a negative length": with_length(b"Content-Length: -1"),
    "a hexadecimal length": with_length(b"Content-Length: 0x%x" % len(BODY)),
    "a length with an underscore": with_length(b"Content-Length: 0_" + LENGTH),
    "a length with a fraction": with_length(b"Content-Length: " + LENGTH + b".0"),
    "an empty length": with_length(b"Content-Length:"),
    "a superscript digit": with_length(b"Content-Length: \xb2"),
    "a length of 5,000 digits": with_length(b"Content-Length: " + b"9" * 5000),
    "Transfer-Encoding before Content-Length": with_coding(
        b"chunked", b"Content-Length: " + LENGTH + b"\r\n"
    ),
    "Content-Length before Transfer-Encoding": CHUNKED.replace(
        b"Transfer", b"Content-Length: 5\r\nTransfer"
    )
    + CHUNK
    + LAST_CHUNK,
    "chunked twice": with_coding(b"chunked, chunked"),
    "chunked in two headers": with_coding(b"chunked", b"Transfer-Encoding: chunked\r\n"),
    "chunked before another coding": with_coding(b"chunked, gzip"),
    "gzip alone": with_coding(b"gzip"),
    "identity alone": with_coding(b"identity"),
    "chunks with HTTP/1.0": with_coding(b"chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
}
# Section 7.1: chunks.
CHUNKS = {
    "a size that is not a number": CHUNKED + b"zz\r\n",
    "an empty size": CHUNKED + b"\r\n",
    "a negative size": CHUNKED + b"-1\r\n",
    "a size with a sign": CHUNKED + b"+" + CHUNK + LAST_CHUNK,
    "a size with 0x": CHUNKED + b"0x" + CHUNK + LAST_CHUNK,
    "a size with an underscore": CHUNKED + b"0_" + CHUNK + LAST_CHUNK,
    "white space before a size": CHUNKED + b" " + CHUNK + LAST_CHUNK,
    "white space after a size": CHUNKED + SIZE + b" \r\n" + BODY + b"\r\n" + LAST_CHUNK,
    "bare LF after a size": CHUNKED + CHUNK.replace(b"\r\n", b"\n", 1) + LAST_CHUNK,
    "bare CR in an extension": CHUNKED + SIZE + b";a\rb\r\n" + BODY + b"\r\n" + LAST_CHUNK,
    "a malformed extension": CHUNKED + SIZE + b";=\r\n" + BODY + b"\r\n" + LAST_CHUNK,
    "an extension of 10 kB": CHUNKED + SIZE + b";a=" + b"b" * 10_000,
    "no line break after a chunk": CHUNKED + SIZE + b"\r\n" + BODY + LAST_CHUNK,
    "a chunk longer than its size": CHUNKED + b"5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "bare LF after a chunk": CHUNKED + CHUNK[:-2] + b"\n0\r\n\r\n",
    "a trailer that is not a header": CHUNKED + CHUNK + b"0\r\nX\r\n\r\n",
    "a trailer with a length": CHUNKED + CHUNK + b"0\r\nContent-Length: 5\r\n\r\n",
    "trailers of 10 kB": CHUNKED + CHUNK + b"0\r\n" + b"X: aaaa\r\n" * 1200,
    "a folded trailer": CHUNKED + CHUNK + b"0\r\nX: a\r\n b\r\n\r\n",
}
BAD_REQUESTS = MESSAGE | LINES | HOSTS | HEADERS | LENGTHS | CHUNKS

# RFC 9112, section 6.1, and RFC 9110, sections 2.5 and 10.1.1: well-formed requests that the server
# does not support, each with the expected status.
UNSUPPORTED = {
    "an unknown coding": (with_coding(b"br, chunked"), 501),
    "gzip within chunks": (with_coding(b"gzip, chunked"), 501),
    "identity within chunks": (with_coding(b"identity, chunked"), 501),
    "a coding with a parameter": (with_coding(b"chunked;a=b"), 501),
    "HTTP/2.0": (with_line(b"POST /orders HTTP/2.0"), 505),
    "HTTP/0.9": (with_line(b"POST /orders HTTP/0.9"), 505),
    "HTTP/9.9": (with_line(b"POST /orders HTTP/9.9"), 505),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an unknown expectation": (with_header(b"Expect: much"), 417),
    "72 kB of headers": (LINE + HOST + (b"X-A: " + b"a" * 8000 + b"\r\n") * 9, 431),
    "a known and an unknown expectation": (with_header(b"Expect: 100-continue, much"), 417),
}

# Section 8: incomplete messages. If a part of the body arrives, this part is complete JSON, so only
# the framing shows that more is missing.
INCOMPLETE = {
    "in the first line": b"POST /ord",
    "in the headers": HEAD,
    "in a header": LINE + b"Hos",
    "before the body": HEAD + b"Content-Length: 500\r\n\r\n",
    "in the body": with_length(b"Content-Length: 500"),
    "one byte before the end": with_length(b"Content-Length: %d" % (len(BODY) + 1)),
    "before the first chunk": CHUNKED,
    "in a size": CHUNKED + b"4",
    "in a chunk": CHUNKED + b"fff\r\n" + BODY,
    "in the line break of a chunk": CHUNKED + CHUNK[:-1],
    "before the last chunk": CHUNKED + CHUNK,
    "in the last chunk": CHUNKED + CHUNK + b"0\r\n",
    "in the trailers": CHUNKED + CHUNK + b"0\r\nX: a\r\n",
}

# Rare forms that are allowed.
ALLOWED = {
    "an empty line before the first line": b"\r\n" + ORDER,
    "a URI": with_line(b"POST http://localhost/orders HTTP/1.1"),
    "a URI in capital letters": with_line(b"POST HTTP://LOCALHOST/orders HTTP/1.1"),
    "HTTP/1.0 without host": ORDER.replace(b"HTTP/1.1", b"HTTP/1.0").replace(HOST, b""),
    "HTTP/1.2": ORDER.replace(b"HTTP/1.1", b"HTTP/1.2"),
    "chunks": CHUNKED + CHUNK + LAST_CHUNK,
    "chunks in capital letters": with_coding(b"CHUNKED"),
    "a size with zeros": CHUNKED + b"000" + CHUNK + b"000\r\n\r\n",
    "an extension": CHUNKED + CHUNK.replace(b"\r\n", b' ; a="b c"\r\n', 1) + b"0;x\r\n\r\n",
    "a trailer": CHUNKED + CHUNK + b"0\r\nX: a\r\n\r\n",
    "a length with zeros": with_length(b"Content-Length: 000" + LENGTH),
    "white space around a length": with_length(b"Content-Length: \t " + LENGTH + b" \t"),
    "a value that is not ASCII": with_header(b"X-A: \xe9"),
    "an empty value": with_header(b"X-A:"),
    "an expectation with HTTP/1.0, which is ignored": with_header(b"Expect: 100-continue").replace(
        b"/1.1", b"/1.0"
    ),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gunicorn") / "orders-api.log"


@pytest.fixture(scope="module")
def port(database_url: str, log: Path) -> Iterator[int]:
    """Start the API in gunicorn, and yield its port."""
    with serve("orders", database_url, log) as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture
def orders(database_url: str) -> Iterator[Orders]:
    found = Orders(database_url)
    yield found
    found.engine.dispose()


class Orders:
    """Count the orders that were stored since this object was made."""

    def __init__(self, database_url: str) -> None:
        self.engine = create_engine(database_url)
        self._before = self._count()

    def _count(self) -> int:
        with self.engine.connect() as connection:
            found: int = connection.scalar(text("SELECT count(*) FROM orders"))
        return found

    def count(self) -> int:
        return self._count() - self._before


class _Received:
    """Stand in for the socket that `HTTPResponse` reads, and return these bytes."""

    def __init__(self, received: bytes) -> None:
        self._file = io.BytesIO(received)

    def makefile(self, _mode: str) -> io.BytesIO:
        return self._file


def exchange(port: int, sent: bytes, *, ends: bool = False) -> bytes:
    """Send bytes, and return everything that the server sends until it closes the connection.

    Args:
        port: The server's port.
        sent: The bytes to send.
        ends: Whether the client ends its side of the connection after these bytes.
    """
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(sent)
        if ends:
            client.shutdown(socket.SHUT_WR)
        while more := client.recv(65536):
            received += more
    return received


def only_response(received: bytes) -> HTTPResponse:
    """Return the response in these bytes, after checking that no second one follows."""
    response = HTTPResponse(_Received(received))  # type: ignore[arg-type]  # HTTPResponse uses only makefile()
    response.begin()
    body = received.partition(b"\r\n\r\n")[2]
    assert len(body) == int(response.headers["Content-Length"]), "a second answer follows"
    return response


def check_refused(received: bytes, status: int) -> dict[str, object]:
    """Check that the only answer is a problem document with `Connection: close`."""
    response = only_response(received)
    assert response.status == status, received
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert response.headers["Connection"] == "close"
    document: dict[str, object] = json.load(response)
    assert document["status"] == status
    assert document["detail"]
    assert document["type"] != "about:blank"
    assert document["request_id"] == response.headers["X-Request-ID"]
    return document


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_violates_http_is_refused(port: int, orders: Orders, name: str) -> None:
    received = exchange(port, BAD_REQUESTS[name] + ORDER)

    document = check_refused(received, 400)
    assert document["type"] in {"/problems/malformed-request", "/problems/not-json"}
    assert orders.count() == 0


def test_an_error_quotes_little_of_a_request(port: int, log: Path) -> None:
    line = b"POST /orders HTTP/1.1\r\n" + b"\0" * 8000

    received = exchange(port, line + b"\r\n\r\n")

    detail = check_refused(received, 400)["detail"]
    assert isinstance(detail, str)
    assert len(detail) <= 200
    assert max(len(line) for line in log.read_text().splitlines()) < 1000


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_request_is_refused(port: int, orders: Orders, name: str) -> None:
    sent, status = UNSUPPORTED[name]

    received = exchange(port, sent + ORDER)

    check_refused(received, status)
    assert orders.count() == 0


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_message_is_not_executed(port: int, orders: Orders, name: str) -> None:
    received = exchange(port, INCOMPLETE[name], ends=True)

    document = check_refused(received, 400)
    assert document["type"] == "/problems/malformed-request"
    assert document["detail"] == "The connection ended before the request did."
    assert orders.count() == 0


@pytest.mark.parametrize("name", ALLOWED)
def test_a_rare_but_valid_request_is_executed(port: int, orders: Orders, name: str) -> None:
    received = exchange(port, ALLOWED[name], ends=True)

    assert only_response(received).status == 202
    assert orders.count() == 1


def test_a_connection_that_ends_without_a_request_is_not_answered(port: int) -> None:
    assert exchange(port, b"", ends=True) == b""


def test_pipelined_requests_are_answered_in_order(port: int, orders: Orders) -> None:
    """The third order asks to close the connection, so a fourth one is not executed.

    See RFC 9112, section 9.3.2.
    """
    third = with_header(b"Connection: keep-alive, Close")

    received = exchange(port, ORDER + ORDER + third + ORDER)

    assert received.count(b"HTTP/1.1 202 ") == 3
    assert received.count(b"\r\nConnection: close\r\n") == 1
    assert orders.count() == 3


@pytest.mark.parametrize(
    "header",
    [
        b"Connection: close",
        b"Connection: x, close",
        b"Connection: keep-alive\r\nConnection: close",
        b"connection: CLOSE",
    ],
)
def test_connection_close_is_honoured_in_every_form(
    port: int, orders: Orders, header: bytes
) -> None:
    """See RFC 9112, section 9.6."""
    received = exchange(port, with_header(header) + ORDER)

    assert only_response(received).headers["Connection"] == "close"
    assert orders.count() == 1


def test_the_host_of_the_request_target_overrides_the_header(port: int) -> None:
    """See RFC 9112, section 3.2.2."""
    for _ in range(2):  # so that the first page, of one order, has a link to a second page
        exchange(port, ORDER, ends=True)

    received = exchange(
        port,
        b"GET http://localhost:81/orders?limit=1 HTTP/1.1\r\nHost: localhost:82\r\n"
        b"Connection: close\r\n\r\n",
    )

    link = only_response(received).headers["Link"]
    assert link.startswith("<http://localhost:81/orders?")
