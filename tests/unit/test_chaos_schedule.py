"""The seed and the duration determine the schedule of `make chaos`, so it can be repeated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chaos.schedule import FIRST_AT_S, Kind, plan

TESTS = Path(__file__).resolve().parents[1]


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert plan(7, 300) == plan(7, 300)
    assert plan(7, 300) != plan(8, 300)


def test_every_kind_of_fault_occurs_within_minutes_for_every_seed() -> None:
    for seed in range(50):
        assert {fault.kind for fault in plan(seed, 300)} == set(Kind)


def test_programs_servers_and_connections_have_faults() -> None:
    found = {fault.target for seed in range(20) for fault in plan(seed, 300)}
    assert found >= {"postgres", "broker", "orders-relay", "payments-consumer", "orders-api"}
    assert found >= {"relay>postgres", "relay>broker", "consumer>broker", "api>postgres"}


def test_faults_come_in_order_within_the_time_and_sometimes_two_at_once() -> None:
    faults = plan(7, 60)
    times = [fault.at_s for fault in faults]
    assert times == sorted(times)
    assert times[0] == FIRST_AT_S
    assert times[-1] < 60
    assert len(set(times)) < len(times)


@pytest.mark.slow
def test_every_process_shows_the_same_schedule() -> None:
    """The order does not depend on the salt of hashes, which differs in each process."""
    shown = [
        subprocess.run(
            [sys.executable, "-m", "chaos", "--dry-run", "--seed", "7", "--seconds", "60"],
            cwd=TESTS,
            env={"PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert shown[0] == shown[1]
    assert shown[0].splitlines() == [str(fault) for fault in plan(7, 60)]
