"""Read the log files of the stack's processes: their last lines, and new lines."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from settle.stack.definition import APIS, BROKER, POSTGRES, WORKERS
from settle_outbox.errors import SettleError
from settle_outbox.suggest import unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from settle.stack.state import StateFolder

SUPERVISORD = "supervisord"
NAMES = (SUPERVISORD, POSTGRES, BROKER, *APIS, *WORKERS)
POLL_S = 0.2
QUOTED_MAX_LENGTH = 300  # characters of a line in an error message

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)[.,]?(\d{0,6})")
_ERROR = re.compile(
    r'"level": "(error|critical)"|\b(ERROR|CRITICAL|FATAL|PANIC)\b'
    r"|^Error: |^[\w.]+(Error|Exception)\b"
)
_ROUTINE = re.compile(r'"level": "(debug|info)"|\[(debug|info) *\]|\b(DEBUG|INFO|LOG)\b')


class LogError(SettleError):
    """There is no such log."""


class Line(NamedTuple):
    """A line of a process's log. `at` is its Unix time, or that of an earlier line."""

    at: float
    process: str
    text: str


def find_logs(state: StateFolder, process: str | None) -> dict[str, Path]:
    """Return the log files to read, by the name of their process.

    Raises:
        LogError: the process does not exist, or nothing has been logged yet.
    """
    if process is not None and process not in NAMES:
        raise LogError(unknown_name("process", process, NAMES))
    wanted = NAMES if process is None else (process,)
    found = {name: state.logs / f"{name}.log" for name in wanted}
    found = {name: path for name, path in found.items() if path.exists()}
    if not found:
        what = process or "Settle"
        raise LogError(f"{what} has no log in {state.logs} yet: run settle up first.")
    return found


def last_lines(logs: dict[str, Path], count: int) -> list[Line]:
    """Return the last lines of all files together, sorted by time."""
    lines = [line for name, path in logs.items() for line in _timed(name, _tail(path, count))]
    lines.sort(key=lambda line: line.at)  # stable: keeps the order in each file
    return lines[-count:] if count else []


def follow(logs: dict[str, Path]) -> Iterator[Line]:
    """Yield new lines without end. A file that is rotated is followed."""
    opened = {name: _at_end(path) for name, path in logs.items()}
    try:
        while True:
            for name, path in logs.items():
                for text in _read_on(opened, name, path):
                    yield Line(0.0, name, text)
            time.sleep(POLL_S)
    finally:
        for file in opened.values():
            file.close()


def last_error(log: Path) -> str | None:
    """Return the last line with an error, or the last line that is not routine; None without one.

    A program that cannot start may report the reason in an unknown form.
    """
    try:
        lines = [line for line in _tail(log, 200) if line.strip()]
    except OSError:
        return None
    found = [line for line in lines if _ERROR.search(line)] or [
        line for line in lines if not _ROUTINE.search(line)
    ]
    return found[-1].strip()[:QUOTED_MAX_LENGTH] if found else None


def _tail(path: Path, count: int) -> list[str]:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        size = 64 * 1024
        while True:
            file.seek(max(end - size, 0))
            lines = file.read().decode(errors="replace").splitlines()
            if len(lines) > count or size >= end:
                return lines[-count:] if count else []
            size *= 4


def _timed(process: str, lines: Iterable[str]) -> Iterator[Line]:
    at = 0.0
    for text in lines:
        found = _TIME.search(text)
        if found:
            read = datetime.fromisoformat(f"{found[1]}T{found[2]}.{found[3] or '0':0<6}")
            # Only supervisord logs local time.
            at = (
                read.timestamp() if process == SUPERVISORD else read.replace(tzinfo=UTC).timestamp()
            )
        yield Line(at, process, text)


def _at_end(path: Path) -> BinaryIO:
    file = path.open("rb")
    file.seek(0, os.SEEK_END)
    return file


def _read_on(opened: dict[str, BinaryIO], name: str, path: Path) -> list[str]:
    """Return the new lines. A file that was moved away is read to its end first."""
    file = opened[name]
    texts = _whole_lines(file)
    try:
        found = path.stat()
    except FileNotFoundError:  # between the renames of a rotation
        return texts
    before = os.fstat(file.fileno())
    if (found.st_ino, found.st_dev) != (before.st_ino, before.st_dev):
        file.close()
        opened[name] = path.open("rb")
        texts += _whole_lines(opened[name])
    elif found.st_size < file.tell():  # emptied in place
        file.seek(0)
    return texts


def _whole_lines(file: BinaryIO) -> list[str]:
    texts = []
    while line := file.readline():
        if not line.endswith(b"\n"):  # the line is not complete yet
            file.seek(-len(line), os.SEEK_CUR)
            break
        texts.append(line.decode(errors="replace").rstrip("\n"))
    return texts
