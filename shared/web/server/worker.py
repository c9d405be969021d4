"""gunicorn's worker and logger, as the services run in them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
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
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from settle_outbox.log import configure_logging
from settle_outbox.settings import SettingsError, read_log_settings
from shared.web import caching
from shared.web.problems.documents import MEDIA_TYPE, document_of
from shared.web.problems.problem_types import kind_of
from shared.web.server.answer_sender import AnswerSocket, UnsentAnswers
from shared.web.server.connections import WaitingConnections
from shared.web.server.http_rules import apply_rules, is_body_left, must_close
from shared.web.server.request_reader import (
    IncomingRequests,
    RequestError,
    RequestPending,
    Unreader,
)
from shared.web.tracing import REQUEST_ID
from shared.web.waiting.waiters import release_waiters

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

_LIVENESS = (b"GET /livez ", b"HEAD /livez ")
# What `handle` returns when a request needs more than has arrived.
_PENDING = object()

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
    """gunicorn's threaded worker, in which no client holds a thread.

    The main thread waits for the clients, for a bounded time. gunicorn has no setting for that, nor
    one to change its own answers, which are pages of HTML, into problem documents.
    """

    def init_process(self) -> None:
        """Put `write_problem` in the place from which gunicorn calls it."""
        util.write_error = write_problem
        self._liveness_thread = ThreadPoolExecutor(1)
        super().init_process()

    def run(self) -> None:
        """Serve until the worker is asked to stop."""
        self._waiting = WaitingConnections(self.poller, self._close)
        self._incoming = IncomingRequests(
            self._waiting, start=self.enqueue_req, refuse=self._refuse, close=self._close
        )
        self._unsent = UnsentAnswers(self._waiting, self._close)
        super().run()

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a request to a thread, or wait for the first one on a new connection.

        `/livez` runs in a separate thread, so it is answered while all other threads are busy.
        `/readyz` waits with the other requests: if that takes too long, the worker is not ready.
        """
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = Unreader(conn.sock)
            conn.data_ready = True  # gunicorn shall not wait for it
            self._expect_request(conn)
            return
        is_liveness = conn.parser.unreader.starts_with(_LIVENESS)
        pool = self._liveness_thread if is_liveness else self.tpool
        conn.queued_at = time.monotonic()
        done = pool.submit(self.handle, conn)
        done.add_done_callback(partial(self.method_queue.defer, self.finish_request, conn))

    def _expect_request(self, conn: TConn) -> None:
        """Wait for a request, or for the rest of one."""
        self._incoming.expect(
            conn, idle_s=self.cfg.keepalive if self.alive else STOP_KEEPALIVE_LINGER
        )

    def handle(self, conn: TConn) -> object:
        """Handle a request, in a thread."""
        unreader = conn.parser.unreader
        unreader.rewind(queued_s=time.monotonic() - conn.queued_at)
        try:
            keeps_alive: object = super().handle(conn)
        except RequestPending:
            conn.parser.mesg = None  # it is parsed again
            return _PENDING
        if keeps_alive:
            unreader.expect_request()
        else:
            conn.parser = None  # it may hold much of a body that nobody read
        return keeps_alive

    def handle_request(self, req: Request, conn: TConn) -> object:
        """Answer a request, without a wait for the client to take the answer."""
        apply_rules(req)
        connection = conn.sock
        conn.sock = conn.answer = AnswerSocket(connection, req.path)
        # An answer that is known without the body is given at once: without a wait for the rest of
        # the body, and without the invitation to send it.
        invite = conn.answer.sendall if req._expected_100_continue else None  # noqa: SLF001
        req._expected_100_continue = False  # noqa: SLF001
        conn.parser.unreader.expect_body(req.body.reader, invite)
        # Close the connection when the body is unread or unreadable, when the client asks for it,
        # or when the worker is nearly full. The answer says so (RFC 9112, section 9.6).
        asks_to_close = req.should_close
        is_crowded = self.nr_conns > self.max_keepalived
        req.should_close = lambda: (
            req.body.failed or is_body_left(req) or must_close(req) or is_crowded or asks_to_close()
        )
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
        """Send the rest of an answer; then wait for the next request, or end the connection."""
        has_failed = done.cancelled() or done.exception() is not None
        if has_failed:
            self._close(conn)
            return
        answer = getattr(conn, "answer", None)
        if answer is not None and answer.unsent:
            self._unsent.add(conn, answer, then=partial(self.finish_request, conn, done))
            return
        self._incoming.forget(conn)
        result = done.result()
        if not result:
            self._linger(conn)
        elif result is not _PENDING and conn.parser.unreader.is_due():  # it was sent in advance
            self.enqueue_req(conn)
        else:
            self._expect_request(conn)

    def _refuse(self, conn: TConn, error: RequestError) -> None:
        """Answer a request that is not read to its end."""
        with suppress(OSError):  # it may be gone
            write_problem(conn.sock, error.status, error.status.phrase, str(error))
        self._incoming.forget(conn)
        conn.parser = None  # it holds what was received
        self._linger(conn)

    def _linger(self, conn: TConn) -> None:
        """End a connection.

        It is half-closed, and what the client still sends is thrown away for a moment: otherwise it
        might not see its answer (RFC 9112, section 9.6). gunicorn does so too, but meanwhile its
        main thread waits for nobody else.
        """
        try:
            conn.sock.shutdown(SHUT_WR)
        except OSError:  # the client is gone
            self._close(conn)
            return
        conn.left_bytes = LINGER_MAX_BYTES
        deadline = time.monotonic() + LINGER_S
        self._waiting.add(conn, EVENT_READ, self._discard, self._close, deadline=deadline)

    def _discard(self, conn: TConn) -> None:
        try:
            received = len(conn.sock.recv(_DISCARD_BYTES))
        except BlockingIOError:
            return
        except OSError:
            received = 0
        conn.left_bytes -= received
        if not received or conn.left_bytes <= 0:
            self._waiting.remove(conn)
            self._close(conn)

    def murder_pending(self) -> None:
        """Close the connections whose time is over, and one if no other would be accepted."""
        self._waiting.give_up_expired()
        if self.nr_conns >= self.worker_connections:
            self._waiting.give_up_longest()

    def _cap_keepalive(self, deadline: float) -> None:
        """Close the connections without a request soon: the worker stops."""
        self._waiting.shorten_idle(deadline)

    def _close(self, conn: TConn) -> None:
        self._incoming.forget(conn)
        self.nr_conns -= 1
        conn.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answer waiting requests immediately: the stop may time out before their wait ends."""
        self._release_waiters()
        super().handle_exit(sig, frame)

    def is_parent_alive(self) -> bool:
        """Return whether the master runs. If it was killed, answer waiting requests, then stop."""
        alive: bool = super().is_parent_alive()
        if not alive:
            self._release_waiters()
        return alive

    def _release_waiters(self) -> None:
        app = getattr(self, "wsgi", None)
        if app is not None:  # None while it is being loaded
            release_waiters(app)


def write_problem(client: socket, status: int, reason: str, detail: str) -> None:
    """Answer a request with a problem document, and announce that the connection ends.

    Args:
        client: the connection.
        status: the HTTP status.
        reason: its phrase.
        detail: what was wrong, as gunicorn puts it.
    """
    # No request was parsed, so there is no request id to answer with.
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
