"""Environment, URL, database and role cannot change the settings that the code relies on."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

import settle_outbox as outbox
from settle_outbox import Event
from settle_outbox.storage.database import connect_autocommit, make_engine, make_sessions
from shared.fields import parse_time
from shared.migrations import upgrade
from support.delivery import ORDERS, header
from support.pooler import Pooler
from support.web import open_app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.delivery import Delivery
    from support.postgres import PostgresServer

CYRILLIC = "Обед"
# The last literal has length 1 if backslashes are escapes, and 2 with standard strings.
SETTINGS = text(
    r"""
    SELECT current_setting('client_encoding'), current_setting('transaction_isolation'),
           current_setting('standard_conforming_strings'), length('\t')
    """
)
EXPECTED = ("UTF8", "read committed", "on", 2)
ENVIRONMENT = {
    "PGCLIENTENCODING": "LATIN1",
    "PGOPTIONS": "-c default_transaction_isolation=serializable -c standard_conforming_strings=off",
    "PGDATESTYLE": "SQL, DMY",
    "PGTZ": "Asia/Kolkata",
    "PGAPPNAME": "another",
}
WRONG = {
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
    "standard_conforming_strings": "off",
    "datestyle": "'SQL, DMY'",
    "timezone": "'Asia/Kolkata'",
    "bytea_output": "escape",
}


@pytest.fixture(params=["environment", "service file", "database", "role"])
def wrong_settings_url(
    request: pytest.FixtureRequest,
    orders_url: str,
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[str]:
    """Yield the URL of an orders database with wrong settings from one of the sources."""
    name, role = make_url(orders_url).database, make_url(orders_url).username
    target = {"database": f'DATABASE "{name}"', "role": f'ROLE "{role}" IN DATABASE "{name}"'}
    if request.param == "environment":
        for variable, value in ENVIRONMENT.items():
            monkeypatch.setenv(variable, value)
    elif request.param == "service file":
        services = tmp_path / "services.conf"
        services.write_text(
            f"[wrong]\nclient_encoding=LATIN1\noptions={ENVIRONMENT['PGOPTIONS']}\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        monkeypatch.setenv("PGSERVICE", "wrong")
    else:
        for setting, value in WRONG.items():
            postgres.execute(f"ALTER {target[request.param]} SET {setting} = {value}")
    yield orders_url
    if request.param == "role":
        postgres.execute(f"ALTER {target['role']} RESET ALL")


@pytest.mark.parametrize("autocommit", [False, True])
def test_an_engine_overrides_wrong_settings(wrong_settings_url: str, *, autocommit: bool) -> None:
    engine = make_engine(
        wrong_settings_url, application_name="settings-test", pool_size=1, autocommit=autocommit
    )

    with engine.connect() as connection:
        found = tuple(connection.execute(SETTINGS).one())
    engine.dispose()

    assert found == EXPECTED


def test_a_plain_connection_overrides_wrong_settings(wrong_settings_url: str) -> None:
    opened = connect_autocommit(wrong_settings_url, application_name="settings-test")

    with closing(opened), opened.cursor() as cursor:
        cursor.execute(SETTINGS.text)
        assert cursor.fetchone() == EXPECTED


def test_the_url_cannot_override_required_settings(orders_url: str) -> None:
    url = make_url(orders_url).update_query_dict(
        {
            "options": "-c standard_conforming_strings=off -c work_mem=5MB",
            "client_encoding": "LATIN1",
        }
    )
    engine = make_engine(
        url.render_as_string(hide_password=False), application_name="settings-test", pool_size=1
    )

    with engine.connect() as connection:
        found = tuple(connection.execute(SETTINGS).one())
        work_mem = connection.scalar(text("SHOW work_mem"))
    engine.dispose()

    assert (found, work_mem) == (EXPECTED, "5MB")


def test_an_operator_can_make_the_database_read_only(
    orders_url: str, postgres: PostgresServer
) -> None:
    name = make_url(orders_url).database
    postgres.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    engine = make_engine(orders_url, application_name="settings-test", pool_size=1)

    with engine.begin() as connection:
        found = connection.scalar(text("SHOW transaction_read_only"))
    engine.dispose()

    assert found == "on"


def test_orders_are_accepted_and_listed_despite_wrong_settings(wrong_settings_url: str) -> None:
    """Texts of any script are kept, and times are in UTC."""
    body = {"user_id": str(uuid4()), "amount": 1, "description": CYRILLIC}
    with open_app("orders", wrong_settings_url) as app:
        client = app.test_client()

        placed = client.post("/orders", json=body, headers={"Idempotency-Key": "k"})
        again = client.post("/orders", json=body, headers={"Idempotency-Key": "k"})
        (listed,) = client.get("/orders").get_json()

    assert (placed.status_code, again.headers["Location"]) == (202, placed.headers["Location"])
    assert listed["Description"] == CYRILLIC
    assert listed["CreatedAt"].endswith("Z")
    assert listed["CreatedAt"] == parse_time(listed["CreatedAt"]).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize("variable", sorted(ENVIRONMENT))
def test_an_event_is_sent_despite_wrong_settings(delivery: Delivery, variable: str) -> None:
    with delivery.session("orders") as session:
        outbox.add(session, Event("orders", CYRILLIC, "order.created", {"text": CYRILLIC}))
    created_at = delivery.query("orders", "SELECT created_at FROM outbox")[0].created_at

    with delivery.process(
        "outbox-relay", "run", "orders", **{variable: ENVIRONMENT[variable]}
    ) as relay:
        delivery.wait_sent("orders")
        assert not relay.logged("relay.database_down")
        assert not relay.logged("relay.loop_down")

    (record,) = delivery.records(ORDERS)
    assert (record.key.decode(), json.loads(record.value)) == (CYRILLIC, {"text": CYRILLIC})
    assert parse_time(header(record, "ce_time")) == created_at


def test_migrations_run_despite_wrong_settings(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    name = f"misled_{uuid4().hex[:8]}"
    url = postgres.create_database(name)

    upgrade("orders", url)

    with open_app("orders", url) as app:
        assert app.test_client().get("/readyz").status_code == 200
    postgres.drop_database(name)


def test_encoding_and_isolation_are_set_behind_a_pooler_that_ignores_options(
    orders_url: str, postgres: PostgresServer
) -> None:
    """PgBouncer can ignore start-up options. Encoding and isolation level do not need them."""
    name = make_url(orders_url).database
    postgres.execute(f'ALTER DATABASE "{name}" SET default_transaction_isolation = serializable')
    postgres.execute(f'ALTER DATABASE "{name}" SET client_encoding = LATIN1')
    with Pooler(postgres.port, ignored=[b"options"]).serving() as pooler:
        url = make_url(orders_url).set(port=pooler.port)
        engine = make_engine(
            url.render_as_string(hide_password=False), application_name="test", pool_size=1
        )
        with make_sessions(engine).begin() as session:
            found = tuple(session.execute(SETTINGS).one())
            outbox.add(session, Event("orders", CYRILLIC, "order.created", {"text": CYRILLIC}))
        with make_sessions(engine).begin() as session:
            key = session.execute(text("SELECT aggregateid FROM outbox")).scalar_one()
            left = session.execute(text("SHOW default_transaction_isolation")).scalar_one()
        engine.dispose()

    assert found == EXPECTED
    assert key == CYRILLIC
    assert left == "serializable"  # nothing was set on a server connection that clients share
