"""Checks on a thread of their own, so that a frozen neighbour holds up none but its own."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from settle.doctor.check import carried_out, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from settle.doctor.check import Check, Look

# Above what any one check takes that has time-outs of its own: who is silent for longer is frozen.
SILENCE_S = 20.0


class Background:
    """Checks that are carried out on a thread, so that a frozen neighbour stops none but its own.

    Args:
        look: gives the checks.
    """

    def __init__(self, look: Look) -> None:
        self._name = look[0]
        self._made: queue.Queue[Check | None] = queue.Queue()
        self._heard_at = time.monotonic()
        # A daemon: what never answers must not keep the process from ending.
        threading.Thread(target=self._run, args=(look,), daemon=True).start()

    def _run(self, look: Look) -> None:
        for check in carried_out([look]):
            self._heard_at = time.monotonic()
            self._made.put(check)
        self._made.put(None)

    def checks(self) -> Iterator[Check]:
        """Each check as it is made, until the last, or a silence."""
        while True:
            left_s = self._heard_at + SILENCE_S - time.monotonic()
            try:
                check = self._made.get(timeout=max(0.0, left_s))
            except queue.Empty:
                if time.monotonic() < self._heard_at + SILENCE_S:
                    continue
                yield fail(
                    f"{self._name} answers",
                    f"not for {SILENCE_S:.0f} s; nothing more of it was looked at",
                    "it is frozen, or cut off: see its own log",
                )
                return
            if check is None:
                return
            yield check
