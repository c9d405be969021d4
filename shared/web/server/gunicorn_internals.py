"""The undocumented parts of gunicorn that this package uses, and the check that they exist.

The other modules reach underscore names only through the functions here. They also override
methods of gunicorn's threaded worker and use its connections, which the documentation does not
describe either. gunicorn is pinned to `VERSION` for that reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gunicorn import __version__, util
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.message import Message
from gunicorn.http.parser import Parser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers import gthread
from gunicorn.workers.gthread import TConn, ThreadWorker

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from types import ModuleType

    from gunicorn.http.message import Request

VERSION = "27.0.1"

IDLE_WHEN_STOPPING_S: float = gthread.STOP_KEEPALIVE_LINGER
"""How long a worker that stops keeps its idle connections, in seconds."""


class PrivateParts(NamedTuple):
    """Undocumented parts of one class or module of gunicorn.

    Args:
        owner: the class or module.
        names: of its methods and attributes.
        guarded_by: the test that fails if they work differently.
    """

    owner: type | ModuleType
    names: tuple[str, ...]
    guarded_by: str


PRIVATE_PARTS = (
    PrivateParts(
        ThreadWorker,
        ("enqueue_req", "finish_request", "handle", "handle_error", "handle_request"),
        "test_api_connections.py::test_a_request_whose_body_comes_late_is_one_request",
    ),
    PrivateParts(
        ThreadWorker,
        ("max_keepalived", "murder_pending", "nr_conns", "worker_connections"),
        "test_api_connections.py::test_silent_connections_make_room_for_others",
    ),
    PrivateParts(
        ThreadWorker,
        ("handle_exit", "is_parent_alive", "load_wsgi", "method_queue", "poller", "run", "tpool"),
        "test_waiting_server.py::test_a_stop_releases_those_who_wait",
    ),
    PrivateParts(
        ThreadWorker,
        ("_cap_keepalive",),
        "test_api_connections.py::test_a_stop_does_not_wait_for_connections_without_a_request",
    ),
    PrivateParts(
        TConn,
        ("close", "data_ready", "parser", "sock"),
        "test_api_connections.py::test_a_request_whose_body_comes_late_is_one_request",
    ),
    PrivateParts(
        Parser,
        ("mesg", "unreader"),
        "test_api_connections.py::test_a_request_whose_body_comes_late_is_one_request",
    ),
    PrivateParts(
        SocketUnreader,
        ("buf", "chunk", "mxchunk", "sock"),
        "test_reading.py::test_a_body_of_known_length_is_read_once_when_it_is_complete",
    ),
    PrivateParts(
        Message,
        ("_expected_100_continue", "body", "headers", "should_close", "version"),
        "test_api_early_answers.py::test_a_client_that_waits_for_the_invitation_gets_it",
    ),
    PrivateParts(
        Body,
        ("failed", "reader"),
        "test_api_early_answers.py::test_a_known_answer_is_given_at_once",
    ),
    PrivateParts(
        LengthReader,
        ("length", "unreader"),
        "test_api_early_answers.py::test_a_known_answer_is_given_at_once",
    ),
    PrivateParts(
        ChunkedReader,
        ("limit_trailer_section", "parser"),
        "test_api_early_answers.py::test_a_known_answer_is_given_at_once",
    ),
    PrivateParts(
        util,
        ("write_error", "write_nonblock"),
        "test_api_server.py::test_what_is_hardly_http_gets_a_problem_document",
    ),
)


class GunicornVersionError(RuntimeError):
    """The installed gunicorn is not the one that this package was written for.

    gunicorn prints the text of a RuntimeError and ends.
    """


def check() -> None:
    """Check that gunicorn is the pinned version and has the parts that are used.

    Raises:
        GunicornVersionError: it is another version, or lacks a part.
    """
    if __version__ != VERSION:
        raise GunicornVersionError(
            f"gunicorn {__version__} is installed, but the worker was written for {VERSION}:"
            f" pip install gunicorn=={VERSION}."
        )
    for part in PRIVATE_PARTS:
        for name in part.names:
            if not _has(part.owner, name):
                raise GunicornVersionError(
                    f"gunicorn {__version__} has no {part.owner.__name__}.{name}:"
                    f" pip install --force-reinstall gunicorn=={VERSION}."
                )


def replace_error_pages(write: Callable[[socket, int, str, str], None]) -> None:
    """Replace the function with which gunicorn answers a request that it refuses.

    Args:
        write: takes the connection, the HTTP status, its phrase, and gunicorn's message.
    """
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
    codes = (getattr(vars(each).get("__init__"), "__code__", None) for each in classes)
    return any(code is not None and name in code.co_names for code in codes)
