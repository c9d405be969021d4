"""The logs of several processes are shown as one, and a used port is explained."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from settle.stack.logs import Line, find_logs, follow, last_error, last_lines
from settle.stack.ports import port_conflict
from settle.stack.state import StateFolder
from support.ports import free_port
from support.waiting import wait_until

EARLY = '{"event": "relay.started", "level": "info", "at": "2026-11-22T19:57:40.039691Z"}'
LATE = '{"event": "relay.sent", "level": "info", "at": "2026-11-22T19:57:42.147682Z"}'
BETWEEN = "2026-11-22 19:57:41.004 UTC [12] LOG:  a message of two lines"
SECOND = "\tthe second of them"


def logs_of(folder: Path, **files: list[str]) -> dict[str, Path]:
    state = StateFolder(folder)
    state.logs.mkdir()
    for name, lines in files.items():
        path = state.logs / f"{name.replace('_', '-')}.log"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return find_logs(state, None)


def test_lines_are_merged_by_time_and_the_last_of_all_are_shown(tmp_path: Path) -> None:
    logs = logs_of(tmp_path, postgres=[BETWEEN, SECOND], orders_relay=[EARLY, LATE])
    assert [line.text for line in last_lines(logs, 100)] == [EARLY, BETWEEN, SECOND, LATE]
    assert [(line.process, line.text) for line in last_lines(logs, 1)] == [("orders-relay", LATE)]
    assert last_lines(logs, 0) == []


def test_the_last_lines_of_a_long_file_are_found(tmp_path: Path) -> None:
    lines = [f"{number:06} {'x' * 90}" for number in range(5_000)]
    logs = logs_of(tmp_path, broker=lines)
    assert [line.text for line in last_lines(logs, 3_000)] == lines[-3_000:]


def test_following_shows_whole_lines_and_continues_in_a_rotated_file(tmp_path: Path) -> None:
    logs = logs_of(tmp_path, broker=["before"])
    seen: list[Line] = []
    lines = follow(logs)
    wanted = ["one", "two, in halves", "three", "four"]

    def read() -> None:  # ends with the last wanted line, because `follow` never ends
        for line in lines:
            seen.append(line)
            if line.text == wanted[-1]:
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    path = logs["broker"]
    wait_until(lambda: _followed(path), what="the file to be followed")
    with path.open("a", encoding="utf-8") as file:
        file.write("one\ntwo, in ")
        file.flush()
        wait_until(lambda: len(seen) == 1, what="the first line")
        file.write("halves\n")
        file.flush()
        path.rename(path.with_suffix(".log.1"))
        file.write("three\n")
    path.write_text("four\n", encoding="utf-8")
    reader.join(30)
    assert [line.text for line in seen] == wanted
    lines.close()  # type: ignore[attr-defined]


def _followed(path: Path) -> bool:
    """Return whether this process has the file open at its end."""
    for fd in Path("/proc/self/fd").iterdir():
        if fd.resolve() == path:
            position = Path(f"/proc/self/fdinfo/{fd.name}").read_text().split()[1]
            return int(position) == path.stat().st_size
    return False


def test_the_last_error_is_quoted(tmp_path: Path) -> None:
    error = "ModuleNotFoundError: No module named 'services'"
    logs = logs_of(tmp_path, broker=[EARLY, error, "Worker exiting"])

    assert last_error(logs["broker"]) == error


def test_without_an_error_the_last_line_that_is_not_routine_is_quoted(tmp_path: Path) -> None:
    """A line about normal operation does not explain a failure."""
    down = '{"event": "relay.broker_down", "level": "warning"}'
    lost = "env: 'gunicorn': No such file or directory"
    console = "2026-11-22T19:57:42.147682Z [info     ] relay.sent"
    logs = logs_of(
        tmp_path,
        orders_relay=[EARLY, down, LATE],
        orders_api=[lost, console],
        postgres=["2026-11-22 19:57:41.004 UTC [12] LOG:  database system is ready", ""],
        broker=[EARLY, LATE],
    )

    found = {name: last_error(log) for name, log in logs.items()}

    assert found == {"orders-relay": down, "orders-api": lost, "postgres": None, "broker": None}
    assert last_error(tmp_path / "none.log") is None


def test_the_error_for_a_used_port_names_its_process() -> None:
    port = free_port()
    assert port_conflict("127.0.0.1", port) is None
    with socket.create_server(("127.0.0.1", port)):
        taken = port_conflict("127.0.0.1", port)
    assert taken is not None
    assert f"pid {os.getpid()}" in taken
