"""The health checks of supervisors and containers find a process that is alive but stuck."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.delivery import BIN
from support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from support.delivery import Delivery


def check(process: str, directory: Path | None, max_age_s: float = 3) -> tuple[int, str]:
    done = subprocess.run(
        [str(BIN / process), "healthcheck", "orders", "--max-age", str(max_age_s)],
        env={"HEALTH_DIR": str(directory)} if directory else {},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("process", ["outbox-relay", "inbox-consumer"])
def test_a_frozen_process_fails_its_check_and_passes_it_after_it_continues(
    delivery: Delivery, tmp_path: Path, process: str
) -> None:
    # The consumer of orders is ready only if the topic of payments exists.
    assert delivery.run("outbox-relay", "topics", "payments").returncode == 0
    with delivery.process(process, "run", "orders", HEALTH_DIR=str(tmp_path)) as running:
        wait_until(lambda: "is ready" in check(process, tmp_path)[1], timeout_s=30)
        assert check(process, tmp_path)[0] == 0
        running.signal(signal.SIGSTOP)
        wait_until(lambda: check(process, tmp_path)[0] == 1, timeout_s=15)
        assert "is alive but stuck" in check(process, tmp_path)[1]
        running.signal(signal.SIGCONT)
        wait_until(lambda: check(process, tmp_path)[0] == 0, timeout_s=30)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    code, output = check(process, tmp_path)
    assert (code, "has written no heartbeat" in output) == (1, True), output


def test_of_two_relays_the_frozen_or_killed_one_is_reported(
    delivery: Delivery, tmp_path: Path
) -> None:
    run = ("outbox-relay", "run", "orders")
    with (
        delivery.process(*run, HEALTH_DIR=str(tmp_path)) as one,
        delivery.process(*run, HEALTH_DIR=str(tmp_path)) as other,
    ):
        wait_until(lambda: check(run[0], tmp_path)[1].count("is ready") == 2, timeout_s=30)
        one.signal(signal.SIGSTOP)
        wait_until(lambda: check(run[0], tmp_path)[0] == 1, timeout_s=15)
        assert f"(pid {one.pid}) is alive but stuck" in check(run[0], tmp_path)[1]

        # After the stuck relay is killed, only the healthy one is left.
        one.signal(signal.SIGKILL)
        one.wait()
        assert check(run[0], tmp_path)[0] == 0
        other.signal(signal.SIGKILL)
        other.wait()
        code, output = check(run[0], tmp_path)
        assert (code, "has ended" in output) == (1, True), output


def test_a_relay_that_waits_for_its_broker_is_healthy(delivery: Delivery, tmp_path: Path) -> None:
    """A restart would not help, so a supervisor must not restart the relay."""
    nowhere = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "HEALTH_DIR": str(tmp_path)}
    with delivery.process("outbox-relay", "run", "orders", **nowhere):
        wait_until(lambda: "waiting, broker" in check("outbox-relay", tmp_path, 15)[1])
        assert check("outbox-relay", tmp_path, 15)[0] == 0


def test_a_missing_or_unreadable_heartbeat_is_reported_in_a_sentence(tmp_path: Path) -> None:
    assert check("outbox-relay", None)[0] == 1
    assert "HEALTH_DIR is not set" in check("outbox-relay", None)[1]
    assert "has written no heartbeat" in check("outbox-relay", tmp_path)[1]
    (tmp_path / "outbox-relay-orders.host.1.json").write_text(json.dumps({"pid": "?"}))
    assert "cannot be read" in check("outbox-relay", tmp_path)[1]
