"""gunicorn's worker as it is deployed, but with little patience for its clients."""

from __future__ import annotations

from shared.web import reading
from shared.web.server import Worker

PATIENCE_S = 0.5


class HastyWorker(Worker):
    """The same in all else."""

    def init_process(self) -> None:
        """Lose patience: in the worker's own process, and nowhere else."""
        reading.READ_S = reading.WRITE_S = PATIENCE_S
        super().init_process()
