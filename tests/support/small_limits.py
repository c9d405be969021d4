"""gunicorn's worker as it is deployed, but with small limits for its clients."""

from __future__ import annotations

import socket

from shared.web.server import answer_sender, request_reader
from shared.web.server.worker import Worker

PATIENCE_S = 0.5
SEND_BUFFER_BYTES = 16 * 1024


class SmallBufferWorker(Worker):
    """Its connections hold little that is not read yet, as those over a network do.

    Those of the loopback hold megabytes.
    """

    def init_process(self) -> None:
        """Bound what the system keeps for each connection."""
        for listener in self.sockets:
            # What is accepted inherits it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().init_process()


class ImpatientWorker(SmallBufferWorker):
    """And it has little patience."""

    def init_process(self) -> None:
        """Lose patience: in the worker's own process, and nowhere else."""
        request_reader.READ_S = answer_sender.WRITE_S = PATIENCE_S
        super().init_process()
