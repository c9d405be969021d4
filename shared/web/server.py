"""The gunicorn worker that the services run in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from shared.web.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from socket import socket


class Worker(ThreadWorker):  # type: ignore[misc]  # it has no type information
    """gunicorn's threaded worker, answering in problem documents where it answers itself.

    A request that is no HTTP, or over its limits, never reaches the app; gunicorn has a page of
    HTML for it, and no setting to change that.
    """

    def init_process(self) -> None:
        """Put `write_problem` in the place from which gunicorn calls it."""
        util.write_error = write_problem
        super().init_process()


def write_problem(client: socket, status: int, reason: str, detail: str) -> None:
    """Answer a request with a problem document, and announce that the connection ends.

    Args:
        client: the connection.
        status: the HTTP status.
        reason: its phrase.
        detail: what was wrong, as gunicorn puts it.
    """
    document = {"type": "about:blank", "title": reason, "status": status, "detail": detail}
    body = json.dumps(document)
    util.write_nonblock(
        client,
        (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode("ascii"),
    )
