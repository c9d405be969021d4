"""gunicorn's worker and logger, as the services run in them."""

from __future__ import annotations

import json
import time
from collections import deque
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from socket import SHUT_WR
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from gunicorn import glogging, http, util
from gunicorn.http.errors import InvalidHTTPVersion
from gunicorn.workers.gthread import _DEFER, ThreadWorker

from settle_outbox.log import configure_logging
from settle_outbox.settings import SettingsError, read_log_settings
from shared.web import caching
from shared.web.http_rules import apply_rules, is_body_left, must_close
from shared.web.kinds import kind_of
from shared.web.problems import MEDIA_TYPE, document_of
from shared.web.reading import RequestError, Unreader
from shared.web.sending import AnswerSocket, UnsentAnswers
from shared.web.tracing import REQUEST_ID
from shared.web.waiting import release_waiters

if TYPE_CHECKING:
    from concurrent.futures import Future
    from socket import socket
    from types import FrameType

    from gunicorn.config import Config
    from gunicorn.http.message import Request
    from gunicorn.workers.gthread import TConn

log = structlog.get_logger(__name__)

# How long a connection is read from after its last answer, and how much.
LINGER_S = 2.0
LINGER_MAX_BYTES = 16 * 1024 * 1024
_DISCARD_BYTES = 64 * 1024

# Characters of a request that gunicorn quotes in an answer. The log cuts every value by itself.
_DETAIL_MAX = 200


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
        self._lingering: deque[TConn] = deque()
        super().init_process()

    def run(self) -> None:
        """Serve until the worker is asked to stop."""
        self._unsent = UnsentAnswers(self.poller, self._close)
        super().run()

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
        return super().handle(conn)

    def handle_request(self, req: Request, conn: TConn) -> object:
        """Answer a request, without a wait for the client to take the answer."""
        apply_rules(req)
        # An answer that is known without the body is given at once: without a wait for the rest of
        # the body, and without the invitation to send it.
        conn.parser.unreader.expect_body(invites=req._expected_100_continue)  # noqa: SLF001
        req._expected_100_continue = False  # noqa: SLF001
        # The connection ends there, as after a body that could not be read; the answer says so
        # (RFC 9112, section 9.6).
        asks_to_close = req.should_close
        req.should_close = lambda: (
            req.body.failed or is_body_left(req) or must_close(req) or asks_to_close()
        )
        connection = conn.sock
        conn.sock = conn.answer = AnswerSocket(connection, req.path)
        try:
            return super().handle_request(req, conn)
        finally:
            conn.sock = connection

    def handle_error(self, req: Request, client: socket, addr: object, exc: Exception) -> None:
        """Answer a request that cannot be read."""
        if isinstance(exc, InvalidHTTPVersion) and isinstance(exc.version, tuple):
            # It is well-formed; gunicorn would answer 400 (RFC 9110, section 15.6.6).
            exc = RequestError(str(exc), HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if isinstance(exc, RequestError):
            with suppress(OSError):  # it may be gone
                write_problem(client, exc.status, exc.status.phrase, str(exc))
        else:
            super().handle_error(req, client, addr, exc)

    def finish_request(self, conn: TConn, done: Future[object]) -> None:
        """Send the rest of an answer; then wait for the next request, or end the connection.

        A connection that ends is half-closed, and what the client still sends is thrown away for a
        moment: otherwise it might not see its answer (RFC 9112, section 9.6). gunicorn does so too,
        but meanwhile its main thread waits for nobody else.
        """
        has_failed = done.cancelled() or done.exception() is not None
        answer = getattr(conn, "answer", None)
        if not has_failed and answer is not None and answer.unsent:
            self._unsent.add(conn, answer, then=partial(self.finish_request, conn, done))
            return
        if has_failed or done.result() is not False:
            super().finish_request(conn, done)
            return
        try:
            conn.sock.shutdown(SHUT_WR)
            conn.sock.settimeout(0)
            self.poller.register(conn.sock, EVENT_READ, partial(self._discard, conn))
        except (OSError, ValueError):  # the client is gone
            self._close(conn)
            return
        conn.timeout = time.monotonic() + LINGER_S
        conn.left_bytes = LINGER_MAX_BYTES
        self._lingering.append(conn)

    def _discard(self, conn: TConn, client: socket) -> None:
        try:
            received = len(client.recv(_DISCARD_BYTES))
        except BlockingIOError:
            return
        except OSError:
            received = 0
        conn.left_bytes -= received
        if not received or conn.left_bytes <= 0:
            self._lingering.remove(conn)
            self.poller.unregister(client)
            self._close(conn)

    def murder_pending(self) -> None:
        """Close the connections whose time is over, whether they had a request or not."""
        super().murder_pending()
        self._unsent.end_late()
        now = time.monotonic()
        while self._lingering and self._lingering[0].timeout <= now:
            conn = self._lingering.popleft()
            self.poller.unregister(conn.sock)
            self._close(conn)

    def _close(self, conn: TConn) -> None:
        self.nr_conns -= 1
        conn.close()

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
    detail = (detail or reason)[:_DETAIL_MAX]  # it quotes the request
    log.warning("web.malformed_request", status=status, error=detail, request_id=request_id)
    kind = kind_of(status)
    document = document_of(kind, detail, path="", request_id=request_id)
    body = json.dumps(document)
    util.write_nonblock(
        client,
        (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
            f"{caching.HEADER}: {caching.NOT_STORED}\r\n"
            f"{REQUEST_ID}: {request_id}\r\n\r\n{body}"
        ).encode("ascii"),
    )
