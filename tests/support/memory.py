"""How much memory a process took at its peak."""

from __future__ import annotations

from pathlib import Path

# Of every process, whatever it is given.
PEAK_MAX_MB = 200


def peak_mb(pid: int) -> float:
    """Return the most memory that a running process has had, in MB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024
