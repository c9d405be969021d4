"""Cause the faults of a schedule on a running system, and repair the system."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from chaos.schedule import BROKER, POSTGRES, Fault, Kind
from support.delivery import Record
from support.system import CLIENT_NAMES, children, family, send
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.broker import Broker
    from support.postgres import PostgresServer
    from support.system import System

DELAY_S = 0.15
REPLAY_SINCE = "1m"  # the events of the last minute
MAX_DUPLICATED = 300
END_TIMEOUT_S = 40


class Injector:
    """Cause each fault in a separate thread, so that two can happen at once.

    Only faults of the whole stack happen alone.

    Args:
        system: The system.
        seed: The seed of the choices that a fault leaves open.
        say: Called with a line for each fault.
    """

    def __init__(self, system: System, seed: int, say: Callable[[str], None]) -> None:
        self.counted: Counter[Kind] = Counter()
        self.failed: list[str] = []
        self._system = system
        self._rng = random.Random(seed)
        self._say = say
        self._threads: list[threading.Thread] = []
        # While a fault interrupts a server, no other fault may interrupt or need it.
        self._server_locks = {POSTGRES: threading.Lock(), BROKER: threading.Lock()}

    def run(self, faults: Sequence[Fault], seconds: float) -> None:
        """Cause each fault at its time, and wait until the whole time has passed.

        The schedule is paused during a fault of the whole stack.
        """
        began = time.monotonic()
        for fault in faults:
            time.sleep(max(0.0, began + fault.at_s - time.monotonic()))
            # in UTC, as in the logs
            self._say(f"{datetime.now(UTC):%H:%M:%S} {fault}")
            if fault.kind in {Kind.RESTART, Kind.KILL_SUPERVISOR}:
                # A start needs all servers, so all running faults must first be repaired.
                paused_since = time.monotonic()
                self._join()
                self._cause(fault)
                began += time.monotonic() - paused_since
            else:
                thread = threading.Thread(target=self._cause, args=(fault,), name=str(fault))
                self._threads.append(thread)
                thread.start()
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        self._join()

    def _join(self) -> None:
        """Wait until every running fault is repaired."""
        while self._threads:
            self._threads.pop().join()

    def _cause(self, fault: Fault) -> None:
        do = {
            Kind.KILL: self._kill,
            Kind.TERMINATE: self._terminate,
            Kind.FREEZE: self._freeze,
            Kind.FREEZE_PAST_LEASE: self._freeze,
            Kind.KILL_SERVER: self._kill_server,
            Kind.STOP_SERVER: self._stop_server,
            Kind.FREEZE_SERVER: self._freeze_server,
            Kind.RESET: self._reset,
            Kind.CUT: self._cut,
            Kind.DELAY: self._delay,
            Kind.STALL: self._stall,
            Kind.JOIN_AND_LEAVE: self._join_and_leave,
            Kind.JOIN_AND_DIE: self._join_and_die,
            Kind.DUPLICATE: self._duplicate,
            Kind.REPLAY: self._replay,
            Kind.RESTART: self._restart,
            Kind.KILL_SUPERVISOR: self._kill_supervisor,
        }[fault.kind]
        try:
            if do(fault) is not False:
                self.counted[fault.kind] += 1
        except Exception as error:  # noqa: BLE001 - reported; the other faults go on
            self.failed.append(f"{fault}: {type(error).__name__}: {error}")

    # Programs. A method returns False if the program is not running, so there was no fault.

    def _kill(self, fault: Fault) -> bool:
        return self._signal(fault.target, signal.SIGKILL)

    def _terminate(self, fault: Fault) -> bool:
        return self._signal(fault.target, signal.SIGTERM)

    def _signal(self, program: str, number: signal.Signals) -> bool:
        pid = self._system.pid(program)
        send([pid] if pid else [], number)
        return pid is not None

    def _freeze(self, fault: Fault) -> bool:
        pid = self._system.pid(fault.target)
        _freeze([pid] if pid else [], fault.duration_s)
        return pid is not None

    # Servers.

    def _server(self, name: str) -> PostgresServer | Broker:
        return self._system.postgres if name == POSTGRES else self._system.broker

    def _kill_server(self, fault: Fault) -> None:
        self._interrupt(fault, self._server(fault.target).kill)

    def _stop_server(self, fault: Fault) -> None:
        self._interrupt(fault, self._server(fault.target).stop)

    def _interrupt(self, fault: Fault, end: Callable[[], None]) -> None:
        with self._server_locks[fault.target]:
            end()
            time.sleep(fault.duration_s)
            self._server(fault.target).start()

    def _freeze_server(self, fault: Fault) -> bool:
        with self._server_locks[fault.target]:
            pid = self._server(fault.target).pid
            _freeze(family(pid) if pid else [], fault.duration_s)
            return pid is not None

    # Proxies.

    def _reset(self, fault: Fault) -> None:
        who, server = fault.target.split(">")
        self._system.wires[server].reset(*CLIENT_NAMES[who])

    def _cut(self, fault: Fault) -> None:
        who, server = fault.target.split(">")
        with self._system.wires[server].cut(*CLIENT_NAMES[who]):
            time.sleep(fault.duration_s)

    def _delay(self, fault: Fault) -> None:
        who, server = fault.target.split(">")
        with self._system.wires[server].delayed(*CLIENT_NAMES[who], delay_s=DELAY_S):
            time.sleep(fault.duration_s)

    def _stall(self, fault: Fault) -> None:
        who, server = fault.target.split(">")
        with self._system.wires[server].stalled(*CLIENT_NAMES[who]):
            time.sleep(fault.duration_s)

    # Additional relays and consumers.

    def _join_and_leave(self, fault: Fault) -> None:
        self._run_another(fault, signal.SIGTERM)

    def _join_and_die(self, fault: Fault) -> None:
        self._run_another(fault, signal.SIGKILL)

    def _run_another(self, fault: Fault, end: signal.Signals) -> None:
        with self._system.start_another(fault.target) as process:
            time.sleep(fault.duration_s)
            # On a loaded machine, the process may not handle signals yet.
            self._system.wait_started(fault.target, process.pid)
            process.send_signal(end)
            try:
                code = process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            if end is signal.SIGTERM:
                assert code == 0, f"the process ended with {code} on SIGTERM"

    # Repeated records.

    def _duplicate(self, fault: Fault) -> bool:
        """Append copies of some of a topic's records to the topic."""
        delivery, topic = self._system.delivery, f"{fault.target}.events"
        with self._server_locks[BROKER]:
            try:
                found = delivery.records(topic)
            except AssertionError:
                return False  # a broker that came back empty has no topics yet
            chosen = self._rng.sample(found, min(len(found), MAX_DUPLICATED))
            records = [
                Record(each.value, each.headers, each.key, each.partition) for each in chosen
            ]
            delivery.produce(topic, *records)
        return bool(records)

    def _replay(self, fault: Fault) -> None:
        command = ("outbox-relay", "replay", fault.target, "--since", REPLAY_SINCE)
        with self._server_locks[POSTGRES], self._server_locks[BROKER]:
            done = self._system.delivery.run(*command)
        assert done.returncode == 0, done.stderr

    # The whole stack.

    def _restart(self, _: Fault) -> None:
        done = self._system.stack.settle("down")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        left = self._system.stack.running()
        assert left == [], f"left over after settle down: {left}"
        self._system.stack.up()

    def _kill_supervisor(self, _: Fault) -> None:
        stack = self._system.stack
        pid = stack.processes()["supervisord"]["pid"]
        send([pid], signal.SIGKILL)
        wait_until(lambda: not children(pid), what="supervisord to be gone")
        stack.up()


def _freeze(pids: list[int], seconds: float) -> None:
    send(pids, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        send(pids, signal.SIGCONT)
