"""gunicorn's worker and logger, as the services run in them."""

from __future__ import annotations

import json
from contextlib import suppress
from http import HTTPStatus
from socket import SHUT_RD
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from gunicorn import glogging, http, util
from gunicorn.workers.gthread import _DEFER, ThreadWorker

from shared.log import configure_logging
from shared.settings import SettingsError, read_log_settings
from shared.web.kinds import kind_of
from shared.web.problems import MEDIA_TYPE, document_of
from shared.web.reading import RequestTooSlowError, Unreader
from shared.web.tracing import REQUEST_ID
from shared.web.waiting import release_waiters

if TYPE_CHECKING:
    from socket import socket
    from types import FrameType

    from gunicorn.config import Config
    from gunicorn.http.message import Request
    from gunicorn.workers.gthread import TConn

log = structlog.get_logger(__name__)


class Logger(glogging.Logger):  # type: ignore[misc]  # it has no type information
    """Gives gunicorn's own lines the form that all others have; the app logs the requests."""

    def setup(self, cfg: Config) -> None:
        """Set the process's logs up.

        Raises:
            RuntimeError: a setting is wrong; gunicorn ends, and tells this sentence alone.
        """
        self.cfg = cfg
        try:
            level, form = read_log_settings()
        except SettingsError as error:
            raise RuntimeError(str(error)) from error
        configure_logging(level=level, form=form)
        self.error_log.propagate = True


class Worker(ThreadWorker):  # type: ignore[misc]  # it has no type information
    """gunicorn's threaded worker, with bounded patience, and problem documents as its own answers.

    A request that is no HTTP, or over its limits, never reaches the app; gunicorn has a page of
    HTML for it, and no setting to change that. Nor has it one for how long a client may keep a
    thread.
    """

    def init_process(self) -> None:
        """Put `write_problem` in the place from which gunicorn calls it."""
        util.write_error = write_problem
        super().init_process()

    def handle(self, conn: TConn) -> object:
        """Handle a connection's next request, in a thread."""
        if not (conn.initialized or conn.wait_for_data(0)):
            # Nothing was sent yet. gunicorn would wait for it here, 5 s, and so give a thread each
            # to connections that are only opened; its main thread waits for any number of them.
            return _DEFER
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = Unreader(conn.sock)
        conn.parser.unreader.expect_request()
        goes_on = super().handle(conn)
        if goes_on is False:
            _see_off(conn.sock)
        return goes_on

    def handle_request(self, req: Request, conn: TConn) -> object:
        """Answer a request; a client that does not take the answer in time is given up."""
        # After a body that could not be read, gunicorn closes the connection; the answer says so
        # (RFC 9112, section 9.6).
        asks_to_close = req.should_close
        req.should_close = lambda: req.body.failed or asks_to_close()
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            log.warning("web.answer_not_taken", path=req.path, waited_s=conn.sock.gettimeout())
            return False

    def handle_error(self, req: Request, client: socket, addr: object, exc: Exception) -> None:
        """Answer a request that cannot be read."""
        if isinstance(exc, RequestTooSlowError):
            status = HTTPStatus.REQUEST_TIMEOUT
            with suppress(OSError):  # it may be gone
                write_problem(client, status, status.phrase, str(exc))
        else:
            super().handle_error(req, client, addr, exc)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answer those who wait at once: a stop may take less time than they have."""
        self._release_waiters()
        super().handle_exit(sig, frame)

    def is_parent_alive(self) -> bool:
        """Answer them as well when the master was killed: its port is wanted for another."""
        alive: bool = super().is_parent_alive()
        if not alive:
            self._release_waiters()
        return alive

    def _release_waiters(self) -> None:
        app = getattr(self, "wsgi", None)
        if app is not None:  # else it is still being loaded
            release_waiters(app)


def _see_off(client: socket) -> None:
    """Leave a client the time to read its answer, before the connection is closed.

    gunicorn would do so in its main thread, which waits for nobody else meanwhile: up to 2 s for
    each client that is gone.
    """
    with suppress(OSError):
        util.close_graceful(client.dup())
        client.shutdown(SHUT_RD)  # where the client has not closed by now, gunicorn need not wait


def write_problem(client: socket, status: int, reason: str, detail: str) -> None:
    """Answer a request with a problem document, and announce that the connection ends.

    Args:
        client: the connection.
        status: the HTTP status.
        reason: its phrase.
        detail: what was wrong, as gunicorn puts it.
    """
    # There is no request whose id it could have; its address may be what was wrong.
    request_id = str(uuid4())
    log.warning("web.malformed_request", status=status, error=detail, request_id=request_id)
    kind = kind_of(status)
    document = document_of(kind, detail or reason, path="", request_id=request_id)
    body = json.dumps(document)
    util.write_nonblock(
        client,
        (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
            f"{REQUEST_ID}: {request_id}\r\n\r\n{body}"
        ).encode("ascii"),
    )
