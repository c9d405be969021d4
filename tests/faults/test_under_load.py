"""Relays and consumers die, freeze, start and stop under load, and the audit stays clean."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from settle_outbox.publish.relay import SHARDS_PER_BATCH
from support.delivery import ORDERS, header
from support.kafka_proxy import CUT_BEFORE
from support.traffic import SERVICES, Traffic, relays_and_consumers
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.delivery import Delivery, Process
    from support.kafka_proxy import Proxied

RELAY, CONSUMER = "outbox-relay", "inbox-consumer"
POINTS = {
    RELAY: ("relay.locked", "relay.sent", "relay.marked"),
    CONSUMER: ("consumer.recorded", "consumer.applied", "consumer.committed"),
}
LANES = [(program, service) for program in POINTS for service in SERVICES]


@pytest.mark.timeout(300)
def test_each_process_is_killed_at_each_failpoint(delivery: Delivery) -> None:
    """For example, a relay dies after it has sent events, and before it marks them as sent."""
    stop = threading.Event()
    successors_run = threading.Barrier(len(LANES) + 1)

    def run(program: str, service: str) -> None:
        for point in POINTS[program]:
            # The process dies in its third batch, so it has finished work and has more to do.
            with delivery.process(
                program, "run", service, FAILPOINTS=f"{point}=kill@3", RELAY_BATCH="20"
            ) as victim:
                assert victim.wait(timeout_s=60) == -signal.SIGKILL, victim.lines
        with delivery.process(program, "run", service) as successor:
            successors_run.wait(timeout=200)
            stop.wait(200)
            successor.signal(signal.SIGTERM)
            assert successor.wait() == 0

    with ThreadPoolExecutor(len(LANES)) as lanes, Traffic(delivery) as traffic:
        running = [lanes.submit(run, *lane) for lane in LANES]
        try:
            successors_run.wait(timeout=200)
            traffic.end()
            traffic.wait_settled()
        except threading.BrokenBarrierError:
            pass  # a lane has failed, and its result raises the reason
        finally:
            successors_run.abort()
            stop.set()
        for lane in running:
            lane.result(60)
    traffic.check()


def test_a_relay_killed_midway_through_a_batch(
    proxied_delivery: Delivery, proxied: Proxied
) -> None:
    """The topic has the first request of a batch, but not the second."""
    delivery = proxied_delivery
    traffic = Traffic(delivery, clients=3)
    # All orders are of one user, so their events go to one partition, in more than one request.
    traffic.place_many(traffic.users[-1], 600)
    batch = pending(delivery)
    # A relay divides RELAY_BATCH equally among shards. With this value, one shard's share holds all
    # these events. The clients start later, so that the first request has only such events.
    relay_batch = str(SHARDS_PER_BATCH * len(batch))
    with delivery.process("outbox-relay", "run", "orders", RELAY_BATCH=relay_batch) as victim:

        def kill_at_the_second(number: int) -> str | None:
            if number == 1:
                return None
            victim.signal(signal.SIGKILL)
            return CUT_BEFORE

        with proxied.failing(kill_at_the_second):
            assert victim.wait(timeout_s=60) == -signal.SIGKILL
    with traffic, proxied.failing(lambda _: None):
        sent = {header(record, "ce_id") for record in delivery.records(ORDERS)}
        assert batch <= pending(delivery), f"some events of the batch were marked: {victim.lines}"
        assert batch & sent, "no event of the batch was sent"
        assert batch - sent, "all events of the batch were sent"
        with relays_and_consumers(delivery):
            traffic.wait_more(len(batch))
            traffic.end()
            traffic.wait_settled()
        traffic.check()


def pending(delivery: Delivery) -> set[str]:
    """Return the ids of the pending events."""
    return {str(id_) for (id_,) in delivery.query("orders", "SELECT id FROM outbox_pending")}


@pytest.mark.timeout(400)
def test_frozen_processes_continue_after_others_took_over(delivery: Delivery) -> None:
    """They are frozen for longer than a lease, a producer's time-outs and a consumer's session."""
    frozen_at = {RELAY: "relay.sent", CONSUMER: "consumer.applied"}
    others = ExitStack()
    with ExitStack() as running, Traffic(delivery) as traffic, others:
        others.enter_context(relays_and_consumers(delivery))
        frozen = {
            (program, service): running.enter_context(
                delivery.process(program, "run", service, FAILPOINTS=f"{frozen_at[program]}=stop@2")
            )
            for program, service in LANES
        }
        for lane, process in frozen.items():
            wait_until(lambda: is_stopped(process), timeout_s=120, what=f"{lane} to freeze")  # noqa: B023
        placed = [order for orders in traffic.placed.values() for order in list(orders)]
        wait_until(lambda: traffic.settled(placed), timeout_s=90, what="others to take over")
        for service in SERVICES:
            wait_until(
                lambda: not held_transactions(delivery, service),  # noqa: B023
                timeout_s=30,
                what="the end of the lease",
            )

        for process in frozen.values():
            process.signal(signal.SIGCONT)
        for service in SERVICES:
            frozen[RELAY, service].wait_logged("relay.database_up", timeout_s=60)
        others.close()
        # Only the processes that were frozen run now, and they do all the work.
        traffic.wait_more(50)
        traffic.end()
        traffic.wait_settled()
        for process in frozen.values():
            process.signal(signal.SIGTERM)
        assert [process.wait() for process in frozen.values()] == [0] * len(frozen)
    traffic.check()


def is_stopped(process: Process) -> bool:
    """Return True if the process is frozen, or fail with its last log lines."""
    assert process.stopped, "".join(process.lines[-10:])
    return True


def held_transactions(delivery: Delivery, service: str) -> list[object]:
    """Return the transactions of relays that have been idle for over 2 s: the relay is frozen."""
    return delivery.query(
        service,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = :name AND state = 'idle in transaction'"
        " AND state_change < now() - interval '2 seconds'",
        name=f"{RELAY} {service}",
    )


@pytest.mark.timeout(300)
def test_consumers_that_join_and_leave_all_the_time(delivery: Delivery) -> None:
    """They are stopped by SIGTERM and SIGKILL in turn."""

    def join_and_leave(service: str) -> None:
        for how in (signal.SIGTERM, signal.SIGKILL) * 2:
            with delivery.process(CONSUMER, "run", service) as member:
                # After this line, the new member has partitions, and reads from them.
                member.wait_logged("consumer.received", timeout_s=60)
                member.signal(how)
                assert member.wait() == (0 if how is signal.SIGTERM else -how)

    with (
        relays_and_consumers(delivery),
        Traffic(delivery) as traffic,
        ThreadPoolExecutor(2) as pool,
    ):
        for member_runs in [pool.submit(join_and_leave, service) for service in SERVICES]:
            member_runs.result(250)
        traffic.wait_more(20)
        traffic.end()
        traffic.wait_settled()
        traffic.check()
