"""Heartbeats: each process writes one file, which the health checks read."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from settle_outbox.runtime import health
from settle_outbox.runtime.health import UNSEEN_ENDED_S, Health, StuckError, check_health
from support.logs import events
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


RELAY = "outbox-relay-orders"
BEAT = f"""
import sys
from settle_outbox.runtime.health import Health
health = Health(sys.argv[1], {RELAY!r})
health.beat("ready")
sys.stdout.write("x")
sys.stdout.flush()
sys.stdin.read()
health.remove()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start another process that writes a relay's file. It ends when its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEAT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"x"
    with process:
        yield process
        process.kill()


def write(directory: Path, **changed: Any) -> None:
    """Write the file of a process with this process's values, except those in `changed`."""
    Health(str(directory), "template").beat("ready")
    (template,) = directory.glob("template.*.json")
    content = json.loads(template.read_text()) | changed
    template.unlink()
    path = directory / f"{RELAY}.{content['pid_namespace'].strip('pid:[]')}.{content['pid']}.json"
    path.write_text(json.dumps(content))


def set_monotonic(monkeypatch: pytest.MonkeyPatch, later_s: float) -> None:
    monkeypatch.setattr(
        health,
        "time",
        SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + later_s),
    )


def test_each_process_has_its_own_file(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    Health(str(tmp_path), RELAY).beat("waiting", "broker")

    lines = check_health(str(tmp_path), RELAY, 30).splitlines()

    assert len(list(tmp_path.iterdir())) == 2
    assert lines[0].startswith(f"{RELAY} (pid {os.getpid()}) is waiting, broker; seen ")
    assert lines[1].startswith(f"{RELAY} (pid {other.pid}) is ready; seen ")


def test_a_frozen_process_fails_the_check_while_another_one_runs(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    other.send_signal(signal.SIGSTOP)

    def is_one_stuck() -> bool:
        Health(str(tmp_path), RELAY).beat("ready")
        try:
            check_health(str(tmp_path), RELAY, 0.5)
        except StuckError as error:
            return f"(pid {other.pid}) is alive but stuck" in str(error)
        return False

    wait_until(is_one_stuck, what="the frozen process to fail the check")


def test_a_changed_system_time_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        health, "time", SimpleNamespace(time=lambda: time.time() + 4000, monotonic=time.monotonic)
    )
    Health(str(tmp_path), RELAY).beat("ready")  # written before the system time goes back
    monkeypatch.undo()

    assert "is ready" in check_health(str(tmp_path), RELAY, 30)
    set_monotonic(monkeypatch, 31)
    with pytest.raises(StuckError, match="alive but stuck"):
        check_health(str(tmp_path), RELAY, 30)


def test_a_killed_process_fails_the_check_until_another_one_runs(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    other.kill()
    other.wait()
    with pytest.raises(StuckError, match=rf"pid {other.pid}\) has ended"):
        check_health(str(tmp_path), RELAY, 30)

    Health(str(tmp_path), RELAY).beat("ready")

    assert f"(pid {os.getpid()}) is ready" in check_health(str(tmp_path), RELAY, 30)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_that_is_stopped_removes_its_file(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    assert other.stdin is not None
    other.stdin.close()
    other.wait()

    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StuckError, match="has written no heartbeat"):
        check_health(str(tmp_path), RELAY, 30)


@pytest.mark.parametrize(
    "changed",
    [
        {"started": "1"},  # the pid now belongs to another process
        {"boot": "a-boot-before"},
        {"boot": "a-boot-before", "pid_namespace": "pid:[1]"},
    ],
)
def test_the_file_of_an_earlier_process_is_not_taken_for_a_running_one(
    tmp_path: Path, changed: dict[str, str]
) -> None:
    write(tmp_path, **changed)

    with pytest.raises(StuckError, match="has ended"):
        check_health(str(tmp_path), RELAY, 30)


def test_processes_of_other_containers_are_judged_by_the_age_of_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, pid_namespace="pid:[1]", pid=1)
    assert "(pid 1) is ready" in check_health(str(tmp_path), RELAY, 30)

    set_monotonic(monkeypatch, 31)
    with pytest.raises(StuckError, match="alive but stuck"):
        check_health(str(tmp_path), RELAY, 30)
    set_monotonic(monkeypatch, UNSEEN_ENDED_S + 1)
    with pytest.raises(StuckError, match="has ended"):
        check_health(str(tmp_path), RELAY, 30)


def test_a_silent_process_of_another_container_does_not_fail_the_check_of_this_one(
    tmp_path: Path,
) -> None:
    """A restart of this container would not help the other process."""
    write(tmp_path, pid_namespace="pid:[1]", pid=1, monotonic=time.monotonic() - 60)
    Health(str(tmp_path), RELAY).beat("ready")

    assert f"(pid {os.getpid()}) is ready" in check_health(str(tmp_path), RELAY, 30)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "?"}'])
def test_an_unreadable_file_fails_the_check_until_a_process_runs(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / f"{RELAY}.host.1.json").write_text(content)
    with pytest.raises(StuckError, match="cannot be read"):
        check_health(str(tmp_path), RELAY, 30)

    Health(str(tmp_path), RELAY).beat("ready")

    assert "is ready" in check_health(str(tmp_path), RELAY, 30)


@pytest.mark.parametrize("state", ["waiting", "stopped", "starting"])
def test_every_state_of_a_running_loop_passes(tmp_path: Path, state: str) -> None:
    Health(str(tmp_path), RELAY).beat(state, "the reason")

    assert f"is {state}, the reason;" in check_health(str(tmp_path), RELAY, 30)


def test_processes_of_other_kinds_are_ignored(tmp_path: Path) -> None:
    Health(str(tmp_path), f"{RELAY}-eu").beat("ready")
    Health(str(tmp_path), "inbox-consumer-orders").beat("ready")

    with pytest.raises(StuckError, match="has written no heartbeat"):
        check_health(str(tmp_path), RELAY, 30)


def test_after_a_failed_write_the_next_beat_writes_and_the_outage_is_logged_once(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "gone"
    own = Health(str(folder), RELAY)

    with capture_logs() as lines:
        for _ in range(5):
            own.beat("ready")
        folder.mkdir()
        own.beat("ready")

    assert events(lines, "health") == ["health.not_written"]
    assert "is ready" in check_health(str(folder), RELAY, 30)


def test_long_work_repeats_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Health(str(tmp_path), RELAY)
    own.beat("ready", "a detail")
    set_monotonic(monkeypatch, 31)

    own.beat_again()

    assert "is ready, a detail" in check_health(str(tmp_path), RELAY, 30)


def test_without_a_directory_nothing_is_written() -> None:
    own = Health(None, RELAY)
    own.beat("ready")
    own.beat_again()
    own.remove()
    with pytest.raises(StuckError, match="HEALTH_DIR is not set"):
        check_health(None, RELAY, 30)


def test_the_next_beat_after_a_full_disk_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written at once, without the usual pause, because a check may read the old file."""
    own = Health(str(tmp_path), RELAY)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", no_space)
        own.beat("ready")

    own.beat("ready")

    assert "is ready" in check_health(str(tmp_path), RELAY, max_age_s=1)


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
