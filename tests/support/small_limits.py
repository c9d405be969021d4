"""gunicorn's worker as it is deployed, but with small limits for its clients."""

from __future__ import annotations

import socket

from shared.web.server import answer_sender, request_reader
from shared.web.server.worker import Worker

PATIENCE_S = 0.5
SEND_BUFFER_BYTES = 16 * 1024


class SmallBufferWorker(Worker):
    """A worker whose connections buffer few unread bytes, like connections over a network.

    A loopback connection would buffer megabytes.
    """

    def init_process(self) -> None:
        """Limit the system's buffer for each connection."""
        for listener in self.sockets:
            # Accepted connections inherit the option.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().init_process()


class ImpatientWorker(SmallBufferWorker):
    """A worker that also has short time-outs."""

    def init_process(self) -> None:
        """Shorten the time-outs, only in this worker process."""
        request_reader.READ_S = answer_sender.WRITE_S = PATIENCE_S
        super().init_process()
