"""Which thread of a worker answers a request."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from shared.web.server.worker import Worker

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
ORDERS = b"GET /orders HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def worker() -> Any:
    """Return a worker without gunicorn."""
    worker: Any = Worker.__new__(Worker)
    worker.tpool, worker._liveness_thread = Mock(), Mock()  # noqa: SLF001
    worker._incoming, worker.method_queue = Mock(), Mock()  # noqa: SLF001
    return worker


def connection(request: bytes) -> Any:
    """Return a connection on which a whole request has arrived."""
    unreader = Mock(starts_with=request.startswith, is_ready=lambda: True)
    return SimpleNamespace(parser=Mock(unreader=unreader), answer=None)


@pytest.mark.parametrize(("request_", "in_liveness_thread"), [(LIVEZ, True), (ORDERS, False)])
def test_the_first_request_of_a_connection_is_assigned_by_its_path(
    worker: Any, request_: bytes, *, in_liveness_thread: bool
) -> None:
    worker.enqueue_req(connection(request_))

    assert worker._liveness_thread.submit.called == in_liveness_thread  # noqa: SLF001
    assert worker.tpool.submit.called != in_liveness_thread


def test_a_pipelined_request_never_takes_the_liveness_thread(worker: Any) -> None:
    """Otherwise clients that pipeline /livez could delay the load balancer's probe."""
    first_request: Future[object] = Future()
    first_request.set_result(True)  # the connection stays open

    worker.finish_request(connection(LIVEZ), first_request)

    assert worker.tpool.submit.called
    assert not worker._liveness_thread.submit.called  # noqa: SLF001
