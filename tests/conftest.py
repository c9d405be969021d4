"""Fixtures that all tests share: real servers on free ports.

tests/README.md says which fixture to take.
"""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING

import pytest
import structlog

from shared.migrations import upgrade
from support import oldest_postgres
from support.broker import Broker, EmbeddedBroker, chosen_broker, make_broker
from support.delivery import Delivery
from support.postgres import OLDEST, WHEEL, PostgresServer, chosen_postgres, open_postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# If this variable is set, a skipped test fails the session.
REQUIRE_ALL = "SETTLE_REQUIRE_ALL"

# The files that take longest, the longest first (`--durations` shows them). They start before all
# others: a long file that starts last would run alone, while all other jobs are idle.
LONGEST = (
    "test_stack.py",
    "test_stack_faults.py",
    "test_under_load.py",
    "test_stack_recovery.py",
    "test_compose.py",
    "test_relay.py",
    "test_model.py",
    "test_other_users.py",
    "test_library.py",
    "test_doctor_broker.py",
    "test_api_outages.py",
    "test_client_examples.py",
    "test_partitions.py",
)

_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_report_header() -> list[str]:
    return [
        "broker: {} ({})".format(*chosen_broker()),
        "PostgreSQL: {} ({})".format(*chosen_postgres()),
    ]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Restore the configuration of structlog after each test."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Start the PostgreSQL that the session shares. A test that stops it takes `own_postgres`."""
    with open_postgres() as server:
        yield server


@pytest.fixture(
    scope="session",
    params=[WHEEL, *([OLDEST] if oldest_postgres.is_available() else [])],
)
def any_postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """Run the test on the shared PostgreSQL, and on the oldest supported one if it is available."""
    if request.param == WHEEL:
        yield request.getfixturevalue("postgres")
        return
    with PostgresServer(oldest_postgres.binaries()) as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Start a PostgreSQL for this test alone, to stop and kill."""
    with open_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[Broker]:
    """Start the broker that the session shares. Tests take `broker`, which is empty."""
    with make_broker() as server:
        yield server


@pytest.fixture
def broker(shared_broker: Broker) -> Broker:
    """Empty the shared broker, and return it. A test that stops it takes `own_broker`."""
    shared_broker.empty()
    return shared_broker


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """Start a broker for this test alone, to stop, kill and empty."""
    with make_broker() as server:
        yield server


@pytest.fixture
def own_embedded_broker() -> Iterator[Broker]:
    """Start an embedded broker, for tests of what only this broker does."""
    with EmbeddedBroker() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Callable[[str], str]:
    """Return a function that returns the name of a service's migrated template database."""
    made: dict[str, str] = {}

    def template(service: str) -> str:
        if service not in made:
            name = f"{service}_template"
            upgrade(service, postgres.create_database(name))
            made[service] = name
        return made[service]

    return template


def _fresh(service: str, postgres: PostgresServer, template: str) -> Iterator[str]:
    name = f"{service}_{next(_numbers)}"
    yield postgres.create_database(name, template=template)
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def database_url(postgres: PostgresServer, databases: Callable[[str], str]) -> Iterator[str]:
    """Create a migrated database of orders, for a server that runs for all tests of a module."""
    yield from _fresh("orders", postgres, databases("orders"))


@pytest.fixture
def payments_url(postgres: PostgresServer, databases: Callable[[str], str]) -> Iterator[str]:
    """Create a migrated, empty database of payments."""
    yield from _fresh("payments", postgres, databases("payments"))


@pytest.fixture
def orders_url(postgres: PostgresServer, databases: Callable[[str], str]) -> Iterator[str]:
    """Create a migrated, empty database of orders."""
    yield from _fresh("orders", postgres, databases("orders"))


@pytest.fixture
def delivery(payments_url: str, orders_url: str, broker: Broker) -> Delivery:
    """Return both databases and the shared broker, all empty."""
    return Delivery(payments_url, orders_url, broker.bootstrap)


@pytest.fixture
def own_delivery(payments_url: str, orders_url: str, own_broker: Broker) -> Delivery:
    """Return both databases and `own_broker`."""
    return Delivery(payments_url, orders_url, own_broker.bootstrap)


@pytest.fixture
def own_postgres_delivery(own_postgres: PostgresServer, broker: Broker) -> Delivery:
    """Return both databases on `own_postgres`, and the shared broker."""
    urls = {service: own_postgres.create_database(service) for service in ("payments", "orders")}
    for service, url in urls.items():
        upgrade(service, url)
    return Delivery(urls["payments"], urls["orders"], broker.bootstrap)


@pytest.fixture
def embedded_delivery(payments_url: str, orders_url: str, own_embedded_broker: Broker) -> Delivery:
    """Return both databases and `own_embedded_broker`."""
    return Delivery(payments_url, orders_url, own_embedded_broker.bootstrap)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get(REQUIRE_ALL):
        terminalreporter.write_line(f"{REQUIRE_ALL} is set, and {len(skipped)} tests were skipped.")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(REQUIRE_ALL) and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
