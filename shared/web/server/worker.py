"""gunicorn's threaded worker, changed so that no slow client holds a thread."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from selectors import EVENT_READ
from socket import SHUT_WR, socket
from typing import TYPE_CHECKING

from gunicorn import http
from gunicorn.http.errors import InvalidHTTPVersion
from gunicorn.workers.gthread import TConn, ThreadWorker

from shared.web.server import gunicorn_internals
from shared.web.server.answer_sender import AnswerSocket, UnsentAnswers
from shared.web.server.connections import WaitingConnections
from shared.web.server.error_responses import write_problem
from shared.web.server.http_rules import apply_rules, is_body_left, must_close
from shared.web.server.incomplete_requests import IncompleteRequests
from shared.web.server.request_reader import RequestError, RequestPending, Unreader
from shared.web.waiting.waiters import end_waits

if TYPE_CHECKING:
    from types import FrameType

    from gunicorn.config import Config
    from gunicorn.http.message import Request

# Maximum time and bytes for which a connection is read after its last answer.
LINGER_S = 2.0
LINGER_MAX_BYTES = 16 * 1024 * 1024
_DISCARD_BYTES = 64 * 1024

_LIVENESS = (b"GET /livez ", b"HEAD /livez ")
# `handle` returns it if a request needs more than has arrived.
_PENDING = object()


class Worker(ThreadWorker):  # type: ignore[misc]  # it has no type information
    """gunicorn's threaded worker, in which no slow client holds a thread.

    The main thread waits for the clients, for a bounded time. gunicorn has no setting for that.
    gunicorn's own answers, which are HTML pages, become problem documents.
    """

    @classmethod
    def check_config(cls, cfg: Config, log: object) -> None:
        """Check gunicorn itself. The master calls it before it starts a worker."""
        gunicorn_internals.check()
        super().check_config(cfg, log)

    def init_process(self) -> None:
        """Start the threads of a new worker process."""
        gunicorn_internals.replace_error_pages(write_problem)
        self._liveness_thread = ThreadPoolExecutor(1)
        super().init_process()

    def run(self) -> None:
        """Serve until the worker is asked to stop."""
        self._waiting = WaitingConnections(self.poller, self._close)
        self._incoming = IncompleteRequests(
            self._waiting, start=self.enqueue_req, refuse=self._refuse, close=self._close
        )
        self._unsent = UnsentAnswers(self._waiting, self._close)
        super().run()

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a request to a thread, or wait for the first request of a new connection.

        `/livez` has a separate thread, so it is answered while all other threads are busy.
        `/readyz` waits with the other requests: if that takes too long, the worker is not ready.
        """
        if conn.parser is None:
            conn.parser = http.get_parser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = Unreader(conn.sock)
            conn.data_ready = True  # gunicorn must not wait for data
            self._expect_request(conn)
            return
        is_liveness = conn.parser.unreader.starts_with(_LIVENESS)
        self._submit(conn, self._liveness_thread if is_liveness else self.tpool)

    def _submit(self, conn: TConn, pool: Executor) -> None:
        conn.queued_at = time.monotonic()
        done = pool.submit(self.handle, conn)
        done.add_done_callback(partial(self.method_queue.defer, self.finish_request, conn))

    def _expect_request(self, conn: TConn) -> None:
        """Wait for a request, or for the rest of one."""
        idle_s = self.cfg.keepalive if self.alive else gunicorn_internals.IDLE_WHEN_STOPPING_S
        self._incoming.expect(conn, idle_s=idle_s)

    def handle(self, conn: TConn) -> object:
        """Handle a request, in a thread."""
        unreader = conn.parser.unreader
        unreader.rewind(queued_s=time.monotonic() - conn.queued_at)
        try:
            keeps_alive: object = super().handle(conn)
        except RequestPending:
            conn.parser.mesg = None  # the request is parsed again
            return _PENDING
        if keeps_alive:
            unreader.expect_request()
        else:
            conn.parser = None  # the parser may hold a large unread body
        return keeps_alive

    def handle_request(self, req: Request, conn: TConn) -> object:
        """Answer a request, without waiting until the client has received the answer."""
        apply_rules(req)
        connection = conn.sock
        conn.sock = conn.answer = AnswerSocket(connection, req.path)
        # An answer that does not need the body is sent at once: without waiting for the rest of the
        # body, and without inviting the client to send it.
        invite = conn.answer.sendall if gunicorn_internals.take_expectation(req) else None
        conn.parser.unreader.expect_body(req.body.reader, invite)
        # Close the connection if the body is unread or unreadable, if the client asks for it, or
        # if the worker is nearly full. The answer announces it (RFC 9112, section 9.6).
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
        """Answer a request that cannot be read, or that failed outside the app's error handlers."""
        if isinstance(exc, InvalidHTTPVersion) and isinstance(exc.version, tuple):
            # The version is well-formed, so the answer is 505 (RFC 9110, section 15.6.6), not
            # gunicorn's 400.
            exc = RequestError(str(exc), HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if isinstance(exc, RequestError):
            with suppress(OSError):  # the client may be gone
                write_problem(client, exc.status, exc.status.phrase, str(exc))
        else:
            super().handle_error(req, client, addr, exc)

    def finish_request(self, conn: TConn, done: Future[object]) -> None:
        """Send the rest of an answer. Then wait for the next request, or end the connection."""
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
        elif result is not _PENDING and conn.parser.unreader.is_ready():
            # A pipelined request. It does not get the liveness thread: many of them would block it.
            self._submit(conn, self.tpool)
        else:
            self._expect_request(conn)

    def _refuse(self, conn: TConn, error: RequestError) -> None:
        """Answer a request that is not read to its end."""
        with suppress(OSError):  # the client may be gone
            write_problem(conn.sock, error.status, error.status.phrase, str(error))
        self._incoming.forget(conn)
        conn.parser = None  # the parser holds the received bytes
        self._linger(conn)

    def _linger(self, conn: TConn) -> None:
        """End a connection.

        Close it for writing. Then discard for a moment what the client still sends, so that the
        client receives its answer (RFC 9112, section 9.6). gunicorn would block the main thread.
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
        """Give up the connections whose time is over, and close one more if the worker is full."""
        self._waiting.give_up_expired()
        if self.nr_conns >= self.worker_connections:
            self._waiting.give_up_longest()

    def _cap_keepalive(self, deadline: float) -> None:
        """Close the port now, and idle connections soon, because the worker stops.

        gunicorn would close the port last. Until then, clients could connect, but nobody would
        answer. Before the port closes, the connections in its queue are accepted.
        """
        for listener in self.sockets:
            before = -1
            while before < self.nr_conns < self.worker_connections:
                before = self.nr_conns
                self.accept(listener)
            listener.close()
        self._waiting.shorten_idle(deadline)

    def _close(self, conn: TConn) -> None:
        self._incoming.forget(conn)
        self.nr_conns -= 1
        conn.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop. Answer waiting requests at once: the stop may time out before their wait ends."""
        self._end_waits()
        super().handle_exit(sig, frame)

    def is_parent_alive(self) -> bool:
        """Return whether the master runs. If not, answer waiting requests at once."""
        alive: bool = super().is_parent_alive()
        if not alive:
            self._end_waits()
        return alive

    def _end_waits(self) -> None:
        app = getattr(self, "wsgi", None)
        if app is not None:  # None while the app is being loaded
            end_waits(app)
