"""gunicorn's worker as it is deployed, but with little patience for its clients."""

from __future__ import annotations

from shared.web import reading
from shared.web.server import Worker

PATIENCE_S = 0.5

reading.READ_S = reading.WRITE_S = PATIENCE_S


class HastyWorker(Worker):
    """Made where this module has been imported: in gunicorn's master, before it forks."""
