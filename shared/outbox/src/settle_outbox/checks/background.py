"""Run checks in threads, so that a frozen server delays only its own checks."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from settle_outbox.checks.check import fail, run_each

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from settle_outbox.checks.check import Finding, NamedCheck

# Longer than the time-outs of any single check. A server that is silent for longer is frozen.
SILENCE_S = 20.0


def run_at_once(checks: Iterable[NamedCheck]) -> Iterator[Finding]:
    """Run each check in a separate thread. Yield the findings check by check, in order."""
    for running in [_Running(check) for check in checks]:
        yield from running.findings()


class _Running:
    """A check that runs in a thread.

    Args:
        check: the check.
    """

    def __init__(self, check: NamedCheck) -> None:
        self._name = check[0]
        self._queue: queue.Queue[Finding | None] = queue.Queue()
        self._last_at = time.monotonic()
        # A daemon thread: a server that never answers must not keep the process alive.
        threading.Thread(target=self._run, args=(check,), daemon=True).start()

    def _run(self, check: NamedCheck) -> None:
        for finding in run_each([check]):
            self._last_at = time.monotonic()
            self._queue.put(finding)
        self._queue.put(None)

    def findings(self) -> Iterator[Finding]:
        """Yield each finding as soon as it exists, until the last one or until a long silence."""
        while True:
            left_s = self._last_at + SILENCE_S - time.monotonic()
            try:
                finding = self._queue.get(timeout=max(0.0, left_s))
            except queue.Empty:
                if time.monotonic() < self._last_at + SILENCE_S:
                    continue
                yield fail(
                    f"{self._name} answers",
                    f"not for {SILENCE_S:.0f} s; its other checks were left out",
                    "it is frozen, or the network is down: see its own log",
                )
                return
            if finding is None:
                return
            yield finding
