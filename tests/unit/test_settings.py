"""The settings and their defaults. An error names the variable in a sentence."""

from __future__ import annotations

import traceback

import pytest

from settle_outbox.settings import DAY_S, SettingsError, read_database_url, read_settings
from settle_outbox.storage.database import connect_args
from shared.settings import read_listen_address, read_web_settings
from support.environ import environment

GOOD = {
    "ORDERS_DATABASE_URL": "postgresql+psycopg2://user@db/orders",
    "KAFKA_BOOTSTRAP_SERVERS": "a:9092,b:9092",
}


REPLICATION = "a whole number from 1 to 100, or -1 for the broker's default.replication.factor"
# Invalid values of settings that only APIs read, and of settings that only the engine reads.
WRONG_WEB = {
    "TRUSTED_PROXIES": "-1",
    "CORS_ORIGINS": "*",
    "ALLOWED_HOSTS": "https://shop.example",
    "IDEMPOTENCY_RETENTION_S": "59",
    "CURSOR_SECRET": "short",
    "API_WORKERS": "0",
    "API_THREADS": "many",
}
WRONG_DELIVERY = {
    "KAFKA_BOOTSTRAP_SERVERS": "",
    "TOPIC_PARTITIONS": "0",
    "OUTBOX_SHARDS": "-1",
    "RELAY_BATCH": "many",
    "INBOX_RETENTION_S": str(DAY_S),
}


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OUTBOX_SHARDS", raising=False)
    return monkeypatch


def test_the_defaults_are_read_and_the_retention_times_fit_together() -> None:
    settings = read_settings("orders")
    assert settings.kafka_bootstrap_servers == ("a:9092", "b:9092")
    assert settings.outbox_shards is None
    assert settings.topic_partitions == 6
    assert settings.inbox_retention_s > settings.topic_retention_s + settings.replay_window_s
    assert settings.replay_window_s <= settings.outbox_retention_s


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ORDERS_DATABASE_URL", ""),
        ("ORDERS_DATABASE_URL", "nonsense"),
        ("ORDERS_DATABASE_URL", "mysql://user@db/orders"),
        ("ORDERS_DATABASE_URL", "postgresql+psycopg://user@db/orders"),
        ("ORDERS_DATABASE_SCHEMA", "Orders"),
        ("ORDERS_DATABASE_SCHEMA", "orders, public"),
        ("ORDERS_DATABASE_SCHEMA", "x" * 64),
        ("ORDERS_CONSUMER_GROUP", "of orders"),
        ("ORDERS_CONSUMER_GROUP", "x" * 250),
        ("TOPIC_PREFIX", "staging/"),
        ("NEW_GROUP_START", "now"),
        ("KAFKA_BOOTSTRAP_SERVERS", ""),
        ("KAFKA_BOOTSTRAP_SERVERS", " ,"),
        ("TOPIC_PARTITIONS", "0"),
        ("OUTBOX_SHARDS", "-1"),
        ("TRUSTED_PROXIES", "-1"),
        ("TRUSTED_PROXIES", "yes"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "shop.example"),
        ("CORS_ORIGINS", "https://shop.example/"),
        ("CORS_ORIGINS", "https://shop.example,https://*.shop.example"),
        ("CORS_ORIGINS", "null"),
        ("CORS_ORIGINS", "https://Shop.example"),  # browsers send it in lower case
        ("CORS_ORIGINS", "https://shop.example:443"),  # browsers leave the default port out
        ("CORS_ORIGINS", "http://shop.example:80"),
        ("CORS_ORIGINS", "http://shop.example:08080"),
        ("CORS_ORIGINS", "http://shop.example:65536"),
        ("CORS_ORIGINS", "https://магазин.example"),  # browsers send it as xn--...
        ("CORS_ORIGINS", "http://[fe80::1%25eth0]"),
        ("ALLOWED_HOSTS", "https://shop.example"),
        ("ALLOWED_HOSTS", "shop.example:8080"),
        ("ALLOWED_HOSTS", "shop.example/"),
        ("ALLOWED_HOSTS", "*.shop.example"),
        ("ALLOWED_HOSTS", ".shop.example"),
        ("ALLOWED_HOSTS", "shop.example other.example"),
        ("ALLOWED_HOSTS", "магазин.example"),
        ("ALLOWED_HOSTS", "::1"),
        ("RELAY_BATCH", "many"),
        ("RELAY_POLL_S", "0"),
        ("CONSUMER_BATCH", "501"),
        ("IDEMPOTENCY_RETENTION_S", "59"),
        ("CURSOR_SECRET", "x" * 31),
        ("API_WORKERS", "0"),
        ("API_THREADS", "many"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("INBOX_RETENTION_S", str(14 * DAY_S)),  # a duplicate can be as old as that
        ("REPLAY_WINDOW_S", str(8 * DAY_S)),  # more than the retention of the outbox
    ],
)
def test_a_wrong_setting_is_named(environ: pytest.MonkeyPatch, name: str, value: str) -> None:
    environ.setenv(name, value)

    with pytest.raises(SettingsError, match=name):
        (read_web_settings if name in WRONG_WEB else read_settings)("orders")


def test_a_wrong_setting_of_the_apis_stops_no_relay_and_no_consumer() -> None:
    with environment(WRONG_WEB):
        settings = read_settings("orders")

    assert settings.service == "orders"


def test_a_wrong_setting_of_delivery_stops_no_api() -> None:
    with environment(WRONG_DELIVERY):
        settings = read_web_settings("orders")

    assert settings.service == "orders"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_scheme_of_postgresql_selects_psycopg2(scheme: str) -> None:
    with environment({"ORDERS_DATABASE_URL": f"{scheme}://u:p%40ss@db/orders?sslmode=require"}):
        url = read_settings("orders").database_url

    assert url == "postgresql+psycopg2://u:p%40ss@db/orders?sslmode=require"


def test_a_service_with_a_hyphen_has_variables_that_a_shell_can_export() -> None:
    variables = {
        "USER_NOTIFICATIONS_DATABASE_URL": "postgresql://user@db/notes",
        "USER_NOTIFICATIONS_CONSUMER_GROUP": "notes",
    }

    with environment(variables):
        settings = read_settings("user-notifications")

    assert settings.service == "user-notifications"
    assert settings.database_url == "postgresql+psycopg2://user@db/notes"
    assert settings.consumer_group == "notes"


def test_the_database_url_of_the_command_line_replaces_the_variable() -> None:
    assert read_settings("orders", "postgresql://here/orders").database_url == (
        "postgresql+psycopg2://here/orders"
    )
    assert read_settings("other", "postgresql://here/other").service == "other"
    for wrong in ("", "sqlite://"):
        with pytest.raises(SettingsError, match="--database-url"):
            read_settings("orders", wrong)


def test_the_default_consumer_group_is_the_services_name() -> None:
    assert read_settings("orders").consumer_group == "orders"
    with environment({"ORDERS_CONSUMER_GROUP": "staging-orders", "PAYMENTS_CONSUMER_GROUP": "x"}):
        assert read_settings("orders").consumer_group == "staging-orders"


def test_every_database_connection_uses_the_configured_schema(environ: pytest.MonkeyPatch) -> None:
    url = GOOD["ORDERS_DATABASE_URL"]
    environ.setenv("ORDERS_DATABASE_URL", f"{url}?options=-c%20work_mem%3D1MB")
    environ.setenv("ORDERS_DATABASE_SCHEMA", "orders_1")

    for read in (read_database_url("orders"), read_settings("orders").database_url):
        options = connect_args(read, application_name="test")["options"]
        # If a setting has two values, PostgreSQL uses the last.
        assert "-c work_mem=1MB -c search_path=orders_1" in options


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TOPIC_PARTITIONS", "many", "is 'many': expected a whole number from 1 to 10000"),
        ("TOPIC_PARTITIONS", "0", "is '0': expected a whole number from 1 to 10000"),
        ("TOPIC_REPLICATION", "0", f"is '0': expected {REPLICATION}"),
        ("RELAY_POLL_S", "0", "is '0': expected a number from 0.01 to 60"),
        ("LOG_LEVEL", "LOUD", "is 'LOUD': expected DEBUG or INFO or WARNING or ERROR"),
        ("LOG_FORMAT", "xml", "is 'xml': expected auto or json or console"),
        ("RELAY_BATCH", "9" * 1000, f"is '{'9' * 100}': expected a whole number from 1 to 10000"),
    ],
)
def test_a_wrong_value_is_shown(
    environ: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    environ.setenv(name, value)

    with pytest.raises(SettingsError) as raised:
        read_settings("orders")

    assert str(raised.value) == f"{name} {message}"


def test_the_replication_can_be_left_to_the_broker(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("TOPIC_REPLICATION", "-1")

    assert read_settings("orders").topic_replication == -1


def test_an_empty_variable_counts_as_unset() -> None:
    names = [
        *("BIND_ADDRESS", "CORS_ORIGINS", "CURSOR_SECRET", "IDEMPOTENCY_RETENTION_S", "PORT"),
        *("ALLOWED_HOSTS", "TRUSTED_PROXIES", "LOG_FORMAT", "LOG_LEVEL", "NEW_GROUP_START"),
        *("HEALTH_DIR", "ORDERS_CONSUMER_GROUP", "ORDERS_DATABASE_SCHEMA", "OUTBOX_SHARDS"),
        *("RELAY_BATCH", "RELAY_POLL_S", "TOPIC_PREFIX", "TOPIC_PARTITIONS"),
        *("API_WORKERS", "API_THREADS"),
    ]

    def read() -> tuple[object, object, str]:
        return read_web_settings("orders"), read_settings("orders"), read_listen_address()

    unset = read()
    with environment(dict.fromkeys(names, "")):
        empty = read()

    assert empty == unset


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "127.0.0.1:8000"),
        ({"PORT": "8081"}, "127.0.0.1:8081"),
        ({"PORT": "8081", "BIND_ADDRESS": "::"}, "[::]:8081"),
        ({"PORT": "8081", "BIND_ADDRESS": "[::1]"}, "[::1]:8081"),
    ],
)
def test_the_settings_determine_the_address_of_an_api(
    variables: dict[str, str], address: str
) -> None:
    with environment(variables):
        assert read_listen_address() == address


@pytest.mark.parametrize("port", ["eighty", "0", "65536"])
def test_an_invalid_port_is_named(port: str) -> None:
    expected = f"PORT is {port!r}: expected a whole number from 1 to 65535"
    with environment({"PORT": port}), pytest.raises(SettingsError, match=expected):
        read_listen_address()


def test_all_lists_are_read_the_same_way(environ: pytest.MonkeyPatch) -> None:
    """Spaces around items and empty items are ignored."""
    environ.setenv("ALLOWED_HOSTS", " a.example , b.example,")
    environ.setenv("CORS_ORIGINS", ", https://a.example ,https://b.example")
    environ.setenv("KAFKA_BOOTSTRAP_SERVERS", "a:9092, b:9092,,")

    web, engine = read_web_settings("orders"), read_settings("orders")

    assert web.allowed_hosts == ("a.example", "b.example")
    assert web.cors_origins == ("https://a.example", "https://b.example")
    assert engine.kafka_bootstrap_servers == ("a:9092", "b:9092")


@pytest.mark.parametrize(
    "rest",
    [
        "SECRET@SECRET@db/orders",
        "SECRET@SECRET:SECRET@db/orders",
        "SECRET%00SECRET@db/orders",
        "SECRET@db:SECRET/orders",
        "SECRET@[::1/orders",
        "SECRET@db/orders?SECRET=1",
    ],
)
def test_a_malformed_url_does_not_show_its_password(environ: pytest.MonkeyPatch, rest: str) -> None:
    """This includes the traceback, because errors of SQLAlchemy and libpq quote the URL."""
    environ.setenv("ORDERS_DATABASE_URL", f"postgresql+psycopg2://user:{rest}")

    with pytest.raises(SettingsError, match="ORDERS_DATABASE_URL is not a database") as raised:
        read_settings("orders")

    assert "SECRET" not in "".join(traceback.format_exception(raised.value))


def test_a_missing_setting_is_named(environ: pytest.MonkeyPatch) -> None:
    for name in GOOD:
        with environ.context() as changed:
            changed.delenv(name)
            with pytest.raises(SettingsError, match=name):
                read_settings("orders")
    with pytest.raises(SettingsError, match="PAYMENTS_DATABASE_URL"):
        read_database_url("payments")


def test_there_is_no_default_cursor_secret(environ: pytest.MonkeyPatch) -> None:
    unset = read_web_settings("orders").cursor_secret
    environ.setenv("CURSOR_SECRET", "x" * 32)
    given = read_web_settings("orders").cursor_secret

    assert (unset, given) == (None, "x" * 32)


@pytest.mark.parametrize(
    ("variables", "hosts"),
    [
        ({}, ()),
        ({"BIND_ADDRESS": "127.0.0.1"}, ()),
        ({"BIND_ADDRESS": "127.8.9.1"}, ()),
        ({"BIND_ADDRESS": "localhost"}, ()),
        ({"BIND_ADDRESS": "[::1]"}, ()),
        ({"BIND_ADDRESS": "", "TRUSTED_PROXIES": ""}, ()),  # an empty variable counts as unset
        ({"BIND_ADDRESS": "0.0.0.0"}, ("*",)),
        ({"BIND_ADDRESS": "[::]"}, ("*",)),
        ({"BIND_ADDRESS": "192.0.2.7"}, ("*",)),
        ({"BIND_ADDRESS": "127.evil.example"}, ("*",)),
        ({"TRUSTED_PROXIES": "1"}, ("*",)),  # clients use the proxy's name
        ({"ALLOWED_HOSTS": "", "BIND_ADDRESS": "0.0.0.0"}, ("*",)),
        ({"ALLOWED_HOSTS": "Pay.example, pay_1"}, ("pay.example", "pay_1")),
        ({"ALLOWED_HOSTS": "pay.example", "BIND_ADDRESS": "0.0.0.0"}, ("pay.example",)),
        ({"ALLOWED_HOSTS": "[2001:DB8::7],192.0.2.7"}, ("[2001:db8::7]", "192.0.2.7")),
        ({"ALLOWED_HOSTS": "*"}, ("*",)),
        ({"ALLOWED_HOSTS": " , "}, ()),
    ],
)
def test_the_default_of_allowed_hosts_depends_on_who_can_reach_the_service(
    variables: dict[str, str], hosts: tuple[str, ...]
) -> None:
    with environment(variables):
        settings = read_web_settings("orders")

    assert settings.allowed_hosts == hosts
