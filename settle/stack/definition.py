"""The parts of the stack: its programs, their ports and their environment."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

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
    "KAFKA_CONTROLLER_PORT": 19093,  # only Apache Kafka uses it
}
DATABASE_URLS = {service: service_variable(service, "DATABASE_URL") for service in SERVICES}
BOOTSTRAP = "KAFKA_BOOTSTRAP_SERVERS"
BROKER_KIND = "BROKER"
BIND_ADDRESS = "BIND_ADDRESS"
LOOPBACK = "127.0.0.1"
# The settings that `settle up` passes to the services' processes unchanged, named after the fields.
# The other fields have their own variables here, or are not for the user to set.
SETTINGS = frozenset(
    {
        *(field.name.upper() for field in (*fields(Settings), *fields(WebSettings))),
        *(service_variable(service, "CONSUMER_GROUP") for service in SERVICES),
        *(service_variable(service, "DATABASE_SCHEMA") for service in SERVICES),
    }
    - {"SERVICE", "DATABASE_URL", BOOTSTRAP, "CONSUMER_GROUP", "HEALTH_DIR"}
)
# The variable that names the embedded servers. That a URL is set does not show that its server is
# not embedded: `.settle/env` sets the URLs of embedded servers in a shell.
EMBEDDED = "SETTLE_EMBEDDED"

# The variables of the user's environment that the programs get beside the settings: programs need
# them to run. Others, such as keys of other systems, are not passed on.
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


# The addresses by which this machine reaches a program that listens on all addresses.
_REACHED_AT = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - read, not bound


class BrokerKind(StrEnum):
    """A broker that `settle up` can run."""

    EMBEDDED = "embedded"
    KAFKA = "kafka"


class AlreadyRunningError(SettleError):
    """The stack runs with other settings."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that runs, or will run.

    Args:
        state: its folder.
        ports: the ports, by the name of their variable.
        bind_address: the address that the APIs listen on.
        cluster: the embedded PostgreSQL; None if the user names both databases.
        database_urls: the database URLs, by service.
        bootstrap: the broker's addresses, comma-separated.
        broker: the embedded broker; None if the user names one.
        embedded: the services whose database is embedded, and `BROKER` if the broker is.
        settings: the values of `SETTINGS` that the user gave, by the name of their variable.
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
        """The embedded servers, in start order."""
        postgres = (POSTGRES,) if self.cluster is not None else ()
        broker = (BROKER,) if BROKER in self.embedded else ()
        return (*postgres, *broker)

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that supervisord runs, in start order."""
        return (*self.servers, *WORKERS, *APIS)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of supervisord and the programs, without the inherited variables."""
        return {
            "SETTLE_HOME": str(self.state.home),
            "SETTLE_RUN_DIR": str(self.state.run),
            "SETTLE_LOG_DIR": str(self.state.logs_for_supervisor),
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
        """Return the name of a program's file in deploy/programs."""
        return "kafka" if program == BROKER and self.broker is BrokerKind.KAFKA else program

    def base_url(self, service: str) -> str:
        """Return the URL of a service's API on this machine."""
        host = _REACHED_AT.get(self.bind_address, self.bind_address)
        host = f"[{host}]" if ":" in host else host  # RFC 3986, section 3.2.2
        return f"http://{host}:{self.ports[f'{service.upper()}_PORT']}"

    def host(self, program: str) -> str:
        """Return the address that a program listens on."""
        return self.bind_address if program in APIS else LOOPBACK

    def address(self, program: str) -> str | None:
        """Return the address to reach a program at; None if it does not listen."""
        if program in APIS:
            return self.base_url(program.removesuffix("-api"))
        variable = PORT_VARIABLES.get(program)
        return f"{LOOPBACK}:{self.ports[variable]}" if variable else None


def planned_stack(state: StateFolder) -> Stack:
    """Return the stack that the environment describes. Create the embedded cluster if needed.

    Raises:
        SettingsError: a variable is wrong.
        EmbeddedBrokerError: the embedded broker is not installed.
        KafkaUnavailableError: Apache Kafka is requested, and Java or Maven is not installed.
        EmbeddedPostgresError: the embedded PostgreSQL cannot be prepared.
    """
    ports = read_ports()
    bind_address = read_bind_address()
    embedded = read_embedded()
    broker = read_broker()
    if broker is not None:
        refuse_missing_broker(broker, state)
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
    read_database_url(service)  # refuse a wrong one
    return os.environ[DATABASE_URLS[service]]


def read_broker() -> BrokerKind | None:
    """Return the broker to run; None if the environment names a running one.

    Raises:
        SettingsError: the requested broker does not exist, or a running broker is named as well.
    """
    asked = os.environ.get(BROKER_KIND, "")
    if asked and asked not in set(BrokerKind):
        raise SettingsError(f"{BROKER_KIND} is {asked!r}: set it to {' or '.join(BrokerKind)}.")
    if BROKER in read_embedded():
        return BrokerKind(asked or BrokerKind.EMBEDDED)
    if asked:
        raise SettingsError(
            f"{BROKER_KIND}={asked} starts a broker, but {BOOTSTRAP} names a running one: unset one"
            " of them."
        )
    return None


def refuse_missing_broker(broker: BrokerKind, state: StateFolder) -> None:
    """Refuse a broker that is not installed, before anything is started.

    Raises:
        EmbeddedBrokerError: the embedded broker is not installed.
        KafkaUnavailableError: Java or Maven is not installed, or a path does not work.
    """
    if broker is BrokerKind.EMBEDDED:
        find_binary()
        return
    problem = kafka.why_missing() or kafka.path_problem(state.kafka)
    if problem is not None:
        raise kafka.KafkaUnavailableError(problem)


def read_embedded() -> frozenset[str]:
    """Return the services whose database is embedded, and `BROKER` if the broker is."""
    embedded = os.environ.get(EMBEDDED, "").split()
    variables = {**DATABASE_URLS, BROKER: BOOTSTRAP}
    return frozenset(
        name
        for name, variable in variables.items()
        if name in embedded or not os.environ.get(variable)
    )


def read_ports() -> dict[str, int]:
    """Return the configured ports, by the name of their variable.

    Raises:
        SettingsError: a port is not valid, or two are equal.
    """
    ports = {
        name: read_whole(name, default, minimum=1, maximum=65535) for name, default in PORTS.items()
    }
    names: dict[int, str] = {}
    for name, port in ports.items():
        if port in names:
            raise SettingsError(f"{names[port]} and {name} are both {port}: change one of them.")
        names[port] = name
    return ports


def read_bind_address() -> str:
    """Return the address for the APIs to listen on; an IPv6 address without brackets.

    Raises:
        SettingsError: it is not an address of this machine.
    """
    given = os.environ.get(BIND_ADDRESS) or LOOPBACK
    host = given.removeprefix("[").removesuffix("]")
    try:
        with socket.socket(address_family(host)) as probe:
            probe.bind((host, 0))
    except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"{BIND_ADDRESS} is {given!r}, and nothing can listen there ({reason}): "
            "set it to an address of this machine, or to 0.0.0.0 or :: for all of them."
        ) from error
    return host


def read_given_settings() -> dict[str, str]:
    """Return the settings for the services' processes. An empty variable counts as not set."""
    return {name: os.environ[name] for name in sorted(SETTINGS) if os.environ.get(name)}


def take_environment(stack: Stack) -> None:
    """Set this process's environment to that of a stack's programs, to read their settings."""
    for name in SETTINGS - stack.environment.keys():
        os.environ.pop(name, None)
    os.environ.update(stack.environment)


def inherited_environment() -> dict[str, str]:
    """Return the part of the user's environment that supervisord and the programs get."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }


def port_variables(program: str, broker: BrokerKind | None) -> tuple[str, ...]:
    """Return the variables of the ports that a program listens on.

    Args:
        program: the program's name.
        broker: the embedded broker.
    """
    if program == BROKER and broker is BrokerKind.KAFKA:
        return (PORT_VARIABLES[BROKER], "KAFKA_CONTROLLER_PORT")
    return (PORT_VARIABLES[program],) if program in PORT_VARIABLES else ()


def running_stack(state: StateFolder) -> Stack | None:
    """Return the stack that was started last and not stopped; None if there is none.

    An environment file that lacks a variable or has an invalid value, such as the file of another
    version, counts as none.
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
    """Refuse settings that differ from those of the running stack.

    Raises:
        AlreadyRunningError: settings differ. The message names the variables without their values,
            which may be secrets.
        SettingsError: a variable is wrong.
    """
    current = running.environment
    requested = _requested_settings(running)
    names = (*PORTS, BIND_ADDRESS, *DATABASE_URLS.values(), BOOTSTRAP, BROKER_KIND)
    changed = [
        name
        for name in (*names, *sorted(SETTINGS))
        if requested.get(name, "") != current.get(name, "")
    ]
    if changed:
        raise AlreadyRunningError(
            f"Settle is running with other settings: {', '.join(changed)}. To start it with the "
            "new ones, run settle down, then settle up. To keep the current ones, set them as in "
            f"{running.state.env}, and unset those that are not in it."
        )


def _requested_settings(running: Stack) -> dict[str, str]:
    """Return the settings of the environment, in the form of `Stack.environment`.

    A database or broker that the environment does not name is embedded, as in the running stack.
    """
    variables = {**DATABASE_URLS, BROKER: BOOTSTRAP}
    embedded = {variables[name]: running.environment[variables[name]] for name in running.embedded}
    return {
        **{name: str(port) for name, port in read_ports().items()},
        BIND_ADDRESS: read_bind_address(),
        **{name: os.environ.get(name) or embedded.get(name, "") for name in variables.values()},
        BROKER_KIND: read_broker() or "",
        **read_given_settings(),
    }
