"""How much memory a process took at its peak."""

from __future__ import annotations

from pathlib import Path

# Of every process, whatever it is given.
PEAK_MAX_MB = 200


# Prints the status of its process in the end, when it is put before a program in Python.
PRINT_STATUS = """
import atexit, pathlib, sys
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: sys.stderr.write(status.read_text()))
"""


def peak_mb(pid: int) -> float:
    """Return the most memory that a running process has had, in MB."""
    return peak_in(Path(f"/proc/{pid}/status").read_text())


def peak_in(status: str) -> float:
    """Return the most memory that a process has had, in MB, by its status."""
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024
