"""The undocumented parts of gunicorn that this package uses, and the check that they exist.

The other modules call underscore names only through the functions here. They override methods of
gunicorn's threaded worker, and use its connections. The documentation describes none of these
parts, so gunicorn is pinned to `VERSION`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gunicorn import __version__, util
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.message import Message, Request
from gunicorn.http.parser import Parser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers import gthread
from gunicorn.workers.gthread import TConn, ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from types import ModuleType

VERSION = "27.0.1"

IDLE_WHEN_STOPPING_S: float = gthread.STOP_KEEPALIVE_LINGER
"""How long a worker that stops keeps its idle connections, in seconds."""

# By class or module: its methods and attributes. If they work differently, the tests of the server
# fail (test_api_connections, test_api_early_answers, test_api_framing, test_api_server,
# test_waiting_server).
PRIVATE_PARTS: dict[type | ModuleType, tuple[str, ...]] = {
    ThreadWorker: (
        *("_cap_keepalive", "accept", "enqueue_req", "finish_request", "handle", "handle_error"),
        *("handle_exit", "handle_request", "is_parent_alive", "load_wsgi", "max_keepalived"),
        *("method_queue", "murder_pending", "nr_conns", "poller", "sockets", "tpool"),
        "worker_connections",
    ),
    TConn: ("close", "data_ready", "parser", "sock"),
    Parser: ("mesg", "unreader"),
    SocketUnreader: ("buf", "chunk", "mxchunk", "sock"),
    Message: ("_expected_100_continue", "body", "headers", "should_close", "version"),
    Body: ("failed", "reader"),
    LengthReader: ("length", "unreader"),
    ChunkedReader: ("limit_trailer_section", "parser"),
    util: ("write_error", "write_nonblock"),
}


class GunicornVersionError(RuntimeError):
    """The installed gunicorn is not the version that this package was written for.

    gunicorn prints the text of a RuntimeError and ends.
    """


def check() -> None:
    """Check that gunicorn is the pinned version and has the parts that are used.

    Raises:
        GunicornVersionError: gunicorn is another version, or lacks a part.
    """
    if __version__ != VERSION:
        raise GunicornVersionError(
            f"gunicorn {__version__} is installed, but the worker was written for {VERSION}:"
            f" pip install gunicorn=={VERSION}."
        )
    for owner, names in PRIVATE_PARTS.items():
        for name in names:
            if not _has(owner, name):
                raise GunicornVersionError(
                    f"gunicorn {__version__} has no {owner.__name__}.{name}:"
                    f" pip install --force-reinstall gunicorn=={VERSION}."
                )


def replace_error_pages(write: Callable[[socket, int, str, str], None]) -> None:
    """Replace the function by which gunicorn answers a request that it cannot handle."""
    util.write_error = write


def take_expectation(request: Request) -> bool:
    """Return whether the client waits for `100 Continue`, and keep gunicorn from sending it."""
    expected: bool = request._expected_100_continue  # noqa: SLF001
    request._expected_100_continue = False  # noqa: SLF001
    return expected


def _has(owner: type | ModuleType, name: str) -> bool:
    """Return whether a class or module has a name, or the class sets it on each instance."""
    if hasattr(owner, name):
        return True
    classes = owner.__mro__ if isinstance(owner, type) else ()
    constructors = (getattr(vars(each).get("__init__"), "__code__", None) for each in classes)
    return any(code is not None and name in code.co_names for code in constructors)
