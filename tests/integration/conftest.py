"""Test clients and database sessions of both services. Each test has fresh databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import Session

from support.logs import log_plain_tracebacks
from support.web import open_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient


@pytest.fixture
def plain_logs() -> None:
    """Log tracebacks without variables, because formatting the variables takes seconds."""
    log_plain_tracebacks()


@pytest.fixture
def payments(payments_url: str) -> Iterator[FlaskClient]:
    """Return a client of the payments API."""
    with open_app("payments", payments_url) as app:
        yield app.test_client()


@pytest.fixture
def orders(orders_url: str) -> Iterator[FlaskClient]:
    """Return a client of the orders API."""
    with open_app("orders", orders_url) as app:
        yield app.test_client()


@pytest.fixture
def payments_session(payments_url: str) -> Iterator[Session]:
    """Return a session on the payments database. Its open transaction is rolled back at the end."""
    with Session(create_engine(payments_url, poolclass=NullPool)) as session:
        yield session


@pytest.fixture
def orders_session(orders_url: str) -> Iterator[Session]:
    """Return a session on the orders database. Its open transaction is rolled back at the end."""
    with Session(create_engine(orders_url, poolclass=NullPool)) as session:
        yield session
