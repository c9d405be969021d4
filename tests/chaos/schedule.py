"""The schedule of faults, computed from a seed before anything starts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

SERVICES = ("payments", "orders")
POSTGRES, BROKER = "postgres", "broker"
RELAYS = tuple(f"{service}-relay" for service in SERVICES)
CONSUMERS = tuple(f"{service}-consumer" for service in SERVICES)
APIS = tuple(f"{service}-api" for service in SERVICES)
# One of an API's two worker processes, whereas `APIS` means their master.
API_WORKERS = tuple(f"{service}-api worker" for service in SERVICES)
# The connections through a proxy: a client and a server.
PAIRS = ("api>postgres", "relay>postgres", "consumer>postgres", "relay>broker", "consumer>broker")
EVERYTHING = "everything"

FIRST_AT_S = 2.0
# After this time, a frozen relay loses its shards. A frozen consumer loses its partitions earlier,
# after 6 s.
LEASE_S = 10.0


class Kind(StrEnum):
    """A kind of fault."""

    KILL = "kill"  # SIGKILL to a program, which is then started again
    TERMINATE = "terminate"  # SIGTERM to a program, which is then started again
    FREEZE = "freeze"  # SIGSTOP to a program, and SIGCONT after the duration
    FREEZE_PAST_LEASE = "freeze past the lease"
    KILL_SERVER = "kill the server"  # SIGKILL to a server, and a start after the duration
    STOP_SERVER = "stop the server"  # as an operator does, and a start after the duration
    FREEZE_SERVER = "freeze the server"  # all its processes
    RESET = "reset connections"
    CUT = "cut connections"
    DELAY = "delay connections"
    STALL = "stall connections"
    JOIN_AND_LEAVE = "join and leave"  # one more relay or consumer, stopped after the duration
    JOIN_AND_DIE = "join and die"  # one more relay or consumer, killed after the duration
    DUPLICATE = "duplicate records"  # append copies of records to a topic
    REPLAY = "replay an outbox"  # outbox-relay replay
    RESTART = "restart everything"  # settle down, settle up
    KILL_SUPERVISOR = "kill supervisord"  # SIGKILL to supervisord, settle up


@dataclass(frozen=True, slots=True)
class _Choice:
    """The targets of a kind of fault, its possible durations in seconds, and its weight."""

    targets: tuple[str, ...]
    minimum_s: float = 0.0
    maximum_s: float = 0.0
    weight: int = 1


_WORKERS = (*RELAYS, *CONSUMERS)
_PROGRAMS = (*_WORKERS, *APIS, *API_WORKERS)
_SERVERS = (POSTGRES, BROKER)
_CHOICES = {
    Kind.KILL: _Choice(_PROGRAMS, weight=3),
    Kind.TERMINATE: _Choice(_PROGRAMS, weight=2),
    Kind.FREEZE: _Choice(_PROGRAMS, 0.2, 4.0, weight=2),
    Kind.FREEZE_PAST_LEASE: _Choice(_WORKERS, LEASE_S + 1, LEASE_S + 5),
    Kind.KILL_SERVER: _Choice(_SERVERS, 0.0, 5.0, weight=2),
    Kind.STOP_SERVER: _Choice(_SERVERS, 0.0, 5.0),
    Kind.FREEZE_SERVER: _Choice(_SERVERS, 0.5, 12.0),
    Kind.RESET: _Choice(PAIRS, weight=2),
    Kind.CUT: _Choice(PAIRS, 0.5, 8.0),
    Kind.DELAY: _Choice(PAIRS, 1.0, 8.0),
    Kind.STALL: _Choice(PAIRS, 0.5, 12.0),
    Kind.JOIN_AND_LEAVE: _Choice(_WORKERS, 3.0, 15.0),
    Kind.JOIN_AND_DIE: _Choice(_WORKERS, 3.0, 15.0),
    Kind.DUPLICATE: _Choice(SERVICES, weight=2),
    Kind.REPLAY: _Choice(SERVICES),
    Kind.RESTART: _Choice((EVERYTHING,)),
    Kind.KILL_SUPERVISOR: _Choice((EVERYTHING,)),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Args:
        at_s: The seconds after the beginning.
        kind: The kind of fault.
        target: A program, a server, a connection of `PAIRS`, a service, or `EVERYTHING`.
        duration_s: The duration, or 0 for a fault without one.
    """

    at_s: float
    kind: Kind
    target: str
    duration_s: float

    def __str__(self) -> str:
        lasting = f" for {self.duration_s} s" if self.duration_s else ""
        return f"{self.at_s:7.1f} s  {self.kind}: {self.target}{lasting}"


def plan(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of a run by time. They depend only on the arguments.

    Kinds are drawn from a bag, which is filled again when it is empty. So each kind occurs in a run
    of a few minutes. About every third time, two faults happen at once.

    Args:
        seed: Any number.
        seconds: The duration of the run. No fault begins in its last second, but one may end later.
    """
    rng = random.Random(seed)
    bag: list[Kind] = []
    faults = []
    at_s = FIRST_AT_S
    while at_s < seconds - 1:
        for _ in range(rng.choice((1, 1, 2))):
            if not bag:
                bag = [kind for kind, choice in _CHOICES.items() for _ in range(choice.weight)]
                rng.shuffle(bag)
            faults.append(_draw(rng, round(at_s, 1), bag.pop()))
        at_s += rng.uniform(0.5, 5.0)
    return faults


def _draw(rng: random.Random, at_s: float, kind: Kind) -> Fault:
    choice = _CHOICES[kind]
    target = rng.choice(choice.targets)
    return Fault(at_s, kind, target, round(rng.uniform(choice.minimum_s, choice.maximum_s), 1))
