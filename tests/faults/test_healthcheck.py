"""The health checks of supervisors and containers: they must tell alive from alive but stuck."""

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
    told = subprocess.run(
        [str(BIN / process), "healthcheck", "orders", "--max-age", str(max_age_s)],
        env={"HEALTH_DIR": str(directory)} if directory else {},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in told.stderr
    return told.returncode, told.stdout + told.stderr


@pytest.mark.parametrize("process", ["outbox-relay", "inbox-consumer"])
def test_one_that_is_frozen_fails_its_check_and_passes_it_when_it_turns_again(
    delivery: Delivery, tmp_path: Path, process: str
) -> None:
    assert delivery.run("outbox-relay", "topics", "payments").returncode == 0  # it consumes it
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
    code, told = check(process, tmp_path)
    assert (code, "has written no heartbeat" in told) == (1, True), told


def test_of_two_relays_the_one_that_is_frozen_or_killed_is_told(
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

        # Once the stuck one is killed, the other one is all there is, and it is well.
        one.signal(signal.SIGKILL)
        one.wait()
        assert check(run[0], tmp_path)[0] == 0
        other.signal(signal.SIGKILL)
        other.wait()
        code, told = check(run[0], tmp_path)
        assert (code, "has ended" in told) == (1, True), told


def test_one_that_waits_for_its_broker_is_well(delivery: Delivery, tmp_path: Path) -> None:
    """To restart it would mend nothing."""
    nowhere = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "HEALTH_DIR": str(tmp_path)}
    with delivery.process("outbox-relay", "run", "orders", **nowhere):
        wait_until(lambda: "waiting, broker" in check("outbox-relay", tmp_path, 15)[1])
        assert check("outbox-relay", tmp_path, 15)[0] == 0


def test_no_sign_of_life_is_told_in_a_sentence(tmp_path: Path) -> None:
    assert check("outbox-relay", None)[0] == 1
    assert "HEALTH_DIR is not set" in check("outbox-relay", None)[1]
    assert "has written no heartbeat" in check("outbox-relay", tmp_path)[1]
    (tmp_path / "outbox-relay-orders.host.1.json").write_text(json.dumps({"pid": "?"}))
    assert "cannot be read" in check("outbox-relay", tmp_path)[1]
