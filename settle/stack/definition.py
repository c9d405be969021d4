"""What the stack is made of: its programs, where each listens, and their environment."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from environs import Env

from settle.stack.embedded import kafka
from settle.stack.embedded.broker import find_binary
from settle.stack.embedded.postgres import Cluster, open_cluster
from settle.stack.ports import address_family
from settle_outbox.errors import SettleError
from settle_outbox.settings import (
    Settings,
    SettingsError,
    read_database_url,
    read_whole,
    service_variable,
)
from shared.settings import WebSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from settle.stack.state import StateFolder

SERVICES = ("payments", "orders")
PORTS = {
    "PAYMENTS_PORT": 8080,
    "ORDERS_PORT": 8081,
    "POSTGRES_PORT": 15432,
    "KAFKA_PORT": 19092,
    "KAFKA_CONTROLLER_PORT": 19093,  # Apache Kafka's alone
}
DATABASE_URLS = {service: service_variable(service, "DATABASE_URL") for service in SERVICES}
BOOTSTRAP = "KAFKA_BOOTSTRAP_SERVERS"
BROKER_KIND = "BROKER"
BIND_ADDRESS = "BIND_ADDRESS"
LOOPBACK = "127.0.0.1"
# The settings of the services' processes that `settle up` passes on as they were given, each by
# its field's name. The other fields have a variable of their own, or are not for the caller to set.
SETTINGS = frozenset(
    {
        *(field.name.upper() for field in (*fields(Settings), *fields(WebSettings))),
        *(service_variable(service, "CONSUMER_GROUP") for service in SERVICES),
        *(service_variable(service, "DATABASE_SCHEMA") for service in SERVICES),
    }
    - {"SERVICE", "DATABASE_URL", BOOTSTRAP, "CONSUMER_GROUP", "HEALTH_DIR"}
)
# Names what of the above is ours: a shell that has read `.settle/env` has every one of them set.
EMBEDDED = "SETTLE_EMBEDDED"

# What the programs are given of the caller's environment beside the settings: what a program needs
# to run. Whatever else a shell holds, keys of other systems above all, is not for them.
INHERITED = {
    *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
    *("LD_LIBRARY_PATH", "JAVA_HOME", "XDG_CACHE_HOME"),
}
INHERITED_PREFIXES = ("LC_", "PYTHON", "PGSSL", "SSL_")

POSTGRES = "postgres"
BROKER = "broker"
APIS = tuple(f"{service}-api" for service in SERVICES)
PORT_VARIABLES = {
    POSTGRES: "POSTGRES_PORT",
    BROKER: "KAFKA_PORT",
    **{f"{service}-api": f"{service.upper()}_PORT" for service in SERVICES},
}
# Consumers first: joining their group takes the longest.
WORKERS = tuple(f"{service}-{part}" for part in ("consumer", "relay") for service in SERVICES)


# Where this machine reaches what listens on all of its addresses.
_REACHED_AT = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - read, not bound


class BrokerKind(StrEnum):
    """A broker that `settle up` runs itself."""

    EMBEDDED = "embedded"
    KAFKA = "kafka"


class AlreadyRunningError(SettleError):
    """The stack runs with other settings."""


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack, as it runs or is about to.

    Args:
        state: its folder.
        ports: by the name of the variable that sets each.
        bind_address: where the APIs listen.
        cluster: the embedded PostgreSQL, or None when both databases are given.
        database_urls: by service.
        bootstrap: the broker's addresses, comma-separated.
        broker: which broker is ours, or None when one is given.
        embedded: what is not given but ours: services whose database is, and the broker.
        settings: the `SETTINGS` that were given, by the names of their variables.
    """

    state: StateFolder
    ports: Mapping[str, int]
    bind_address: str
    cluster: Cluster | None
    database_urls: Mapping[str, str]
    bootstrap: str
    broker: BrokerKind | None
    embedded: frozenset[str]
    settings: Mapping[str, str]

    @property
    def servers(self) -> tuple[str, ...]:
        """The embedded servers, in the order of starting."""
        postgres = (POSTGRES,) if self.cluster is not None else ()
        broker = (BROKER,) if BROKER in self.embedded else ()
        return (*postgres, *broker)

    @property
    def programs(self) -> tuple[str, ...]:
        """What supervisord runs, in the order of starting."""
        return (*self.servers, *WORKERS, *APIS)

    @property
    def environment(self) -> dict[str, str]:
        """What supervisord and the programs are told, beside what they inherit."""
        return {
            "SETTLE_HOME": str(self.state.home),
            "SETTLE_RUN_DIR": str(self.state.run),
            "SETTLE_LOG_DIR": str(self.state.logs),
            "SETTLE_SOCKET": str(self.state.socket),
            "SETTLE_AUTOSTART": "false",
            "SETTLE_INCLUDE": " ".join(
                f"programs/{self._file(program)}.conf" for program in (*self.servers, *SERVICES)
            ),
            EMBEDDED: " ".join(sorted(self.embedded)),
            **{name: str(port) for name, port in self.ports.items()},
            BIND_ADDRESS: self.bind_address,
            **{DATABASE_URLS[service]: self.database_urls[service] for service in SERVICES},
            BOOTSTRAP: self.bootstrap,
            BROKER_KIND: self.broker or "",
            "HEALTH_DIR": str(self.state.health),
            **self.settings,
        }

    def _file(self, program: str) -> str:
        """Which file of deploy/programs describes a program."""
        return "kafka" if program == BROKER and self.broker is BrokerKind.KAFKA else program

    def base_url(self, service: str) -> str:
        """Where to reach a service's API from this machine."""
        host = _REACHED_AT.get(self.bind_address, self.bind_address)
        host = f"[{host}]" if ":" in host else host  # RFC 3986, section 3.2.2
        return f"http://{host}:{self.ports[f'{service.upper()}_PORT']}"

    def host(self, program: str) -> str:
        """The address that a program listens on."""
        return self.bind_address if program in APIS else LOOPBACK

    def address(self, program: str) -> str | None:
        """Where a program can be reached; None for one that does not listen."""
        if program in APIS:
            return self.base_url(program.removesuffix("-api"))
        variable = PORT_VARIABLES.get(program)
        return f"{LOOPBACK}:{self.ports[variable]}" if variable else None


def planned_stack(state: StateFolder) -> Stack:
    """The stack that the environment asks for; makes the embedded cluster when it needs one.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
        EmbeddedBrokerError: the embedded broker is not installed.
        KafkaUnavailableError: Java or Maven is not installed, and Apache Kafka is asked for.
        EmbeddedPostgresError: the embedded PostgreSQL cannot be prepared.
    """
    ports = read_ports()
    bind_address = read_bind_address()
    embedded = read_embedded()
    broker = read_broker()
    if broker is not None:
        refuse_missing_broker(broker)
    cluster = None
    if not embedded.isdisjoint(SERVICES):
        cluster = open_cluster(state.postgres)
        cluster.initialise()
    return Stack(
        state=state,
        ports=ports,
        bind_address=bind_address,
        cluster=cluster,
        database_urls={
            service: cluster.url(ports["POSTGRES_PORT"], service, role=service)
            if cluster is not None and service in embedded
            else _given_url(service)
            for service in SERVICES
        },
        bootstrap=(
            f"{LOOPBACK}:{ports['KAFKA_PORT']}" if BROKER in embedded else os.environ[BOOTSTRAP]
        ),
        broker=broker,
        embedded=embedded,
        settings=read_given_settings(),
    )


def _given_url(service: str) -> str:
    read_database_url(service)  # refuses a wrong one
    return os.environ[DATABASE_URLS[service]]


def read_broker() -> BrokerKind | None:
    """Which broker the environment asks us to run; None when it gives one.

    Raises:
        SettingsError: it asks for one that there is not, or gives one beside.
    """
    asked = os.environ.get(BROKER_KIND, "")
    if asked and asked not in set(BrokerKind):
        raise SettingsError(f"{BROKER_KIND} is {asked!r}: set it to {' or '.join(BrokerKind)}.")
    if BROKER in read_embedded():
        return BrokerKind(asked or BrokerKind.EMBEDDED)
    if asked:
        raise SettingsError(
            f"{BROKER_KIND}={asked} asks for a broker, and {BOOTSTRAP} names one that is there: "
            "unset one of the two."
        )
    return None


def refuse_missing_broker(broker: BrokerKind) -> None:
    """Refuse a broker that is not installed now, rather than by a program that does not start.

    Raises:
        EmbeddedBrokerError: the embedded broker is not installed.
        KafkaUnavailableError: Java or Maven is not installed.
    """
    if broker is BrokerKind.EMBEDDED:
        find_binary()
        return
    lacking = kafka.missing()
    if lacking is not None:
        raise kafka.KafkaUnavailableError(lacking)


def read_embedded() -> frozenset[str]:
    """What is not given but ours: services whose database is, and the broker."""
    ours = os.environ.get(EMBEDDED, "").split()
    variables = {**DATABASE_URLS, BROKER: BOOTSTRAP}
    return frozenset(
        name for name, variable in variables.items() if name in ours or not os.environ.get(variable)
    )


def read_ports() -> dict[str, int]:
    """The ports that the environment asks for, by the names of their variables.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    env = Env()
    ports = {
        name: read_whole(env, name, default, minimum=1, maximum=65535)
        for name, default in PORTS.items()
    }
    names: dict[int, str] = {}
    for name, port in ports.items():
        if port in names:
            raise SettingsError(f"{names[port]} and {name} are both {port}: change one of them.")
        names[port] = name
    return ports


def read_bind_address() -> str:
    """The address that the environment asks the APIs to listen on; an IPv6 one without brackets.

    Raises:
        SettingsError: it is not an address of this machine.
    """
    given = os.environ.get(BIND_ADDRESS) or LOOPBACK
    host = given.removeprefix("[").removesuffix("]")
    try:
        with socket.socket(address_family(host)) as probe:
            probe.bind((host, 0))
    except (OSError, UnicodeError) as error:  # the second for a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"{BIND_ADDRESS} is {given!r}, and nothing can listen there ({reason}): "
            "set it to an address of this machine, or to 0.0.0.0 or :: for all of them."
        ) from error
    return host


def read_given_settings() -> dict[str, str]:
    """The settings that the environment gives for the services' processes; an empty one is none."""
    return {name: os.environ[name] for name in sorted(SETTINGS) if os.environ.get(name)}


def take_environment(stack: Stack) -> None:
    """Give this process the environment of a stack's programs: settings are read from there."""
    for name in SETTINGS - stack.environment.keys():
        os.environ.pop(name, None)
    os.environ.update(stack.environment)


def inherited_environment() -> dict[str, str]:
    """What supervisord and the programs are given of the caller's environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }


def port_variables(program: str, broker: BrokerKind | None) -> tuple[str, ...]:
    """The variables of the ports that a program listens on.

    Args:
        program: by its name.
        broker: which broker is ours.
    """
    if program == BROKER and broker is BrokerKind.KAFKA:
        return (PORT_VARIABLES[BROKER], "KAFKA_CONTROLLER_PORT")
    return (PORT_VARIABLES[program],) if program in PORT_VARIABLES else ()


def running_stack(state: StateFolder) -> Stack | None:
    """The stack that was started last and not taken down; None when there is none.

    What another version kept, or someone has edited, is as good as none.
    """
    kept = state.read_env()
    try:
        embedded = frozenset(kept[EMBEDDED].split())
        return Stack(
            state=state,
            ports={name: int(kept[name]) for name in PORTS},
            bind_address=kept[BIND_ADDRESS],
            cluster=None if embedded.isdisjoint(SERVICES) else open_cluster(state.postgres),
            database_urls={service: kept[name] for service, name in DATABASE_URLS.items()},
            bootstrap=kept[BOOTSTRAP],
            broker=BrokerKind(kept[BROKER_KIND]) if BROKER in embedded else None,
            embedded=embedded,
            settings={name: kept[name] for name in sorted(SETTINGS & kept.keys())},
        )
    except (KeyError, ValueError):
        return None


def refuse_other_settings(running: Stack) -> None:
    """Refuse to go on with other settings than those that the stack was started with.

    Raises:
        AlreadyRunningError: naming each variable that differs. Values may be secrets.
        SettingsError: naming the variable and what is wrong with it.
    """
    runs_with = running.environment
    asked = _asked_settings(running)
    names = (*PORTS, BIND_ADDRESS, *DATABASE_URLS.values(), BOOTSTRAP, BROKER_KIND)
    changed = [
        name
        for name in (*names, *sorted(SETTINGS))
        if asked.get(name, "") != runs_with.get(name, "")
    ]
    if changed:
        raise AlreadyRunningError(
            f"Settle is running with other settings: {', '.join(changed)}. To start it with the "
            "new ones, run settle down, then settle up. To leave it as it is, set them as in "
            f"{running.state.env}, and unset those that are not there."
        )


def _asked_settings(running: Stack) -> dict[str, str]:
    """What the environment asks for, in the form of `Stack.environment`.

    A database or broker that is not given would be ours again, as it is in the running stack.
    """
    variables = {**DATABASE_URLS, BROKER: BOOTSTRAP}
    ours = {variables[name]: running.environment[variables[name]] for name in running.embedded}
    return {
        **{name: str(port) for name, port in read_ports().items()},
        BIND_ADDRESS: read_bind_address(),
        **{name: os.environ.get(name) or ours.get(name, "") for name in variables.values()},
        BROKER_KIND: read_broker() or "",
        **read_given_settings(),
    }
