"""The peak memory of a process."""

from __future__ import annotations

from pathlib import Path

# The limit for every process and every input.
PEAK_MAX_MB = 200


# Code to insert at the start of a Python program. At exit, it prints the status of the process.
PRINT_STATUS = """
import atexit, pathlib, sys
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: sys.stderr.write(status.read_text()))
"""


def peak_mb(pid: int) -> float:
    """Return the peak memory of a running process, in MB."""
    return peak_in(Path(f"/proc/{pid}/status").read_text())


def peak_in(status: str) -> float:
    """Return the peak memory in a process's status, in MB."""
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024
