"""The settings of a running stack. Other settings are refused, and the error names them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from settle.stack.definition import (
    BIND_ADDRESS,
    BOOTSTRAP,
    BROKER_KIND,
    DATABASE_URLS,
    PORTS,
    SETTINGS,
    AlreadyRunningError,
    Stack,
    planned_stack,
    read_bind_address,
    refuse_other_settings,
    running_stack,
    take_environment,
)
from settle.stack.state import StateFolder
from settle_outbox.settings import SettingsError
from shared.settings import read_web_settings
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Mapping

README = Path(__file__).resolve().parents[2] / "README.md"
SECRET = "0123456789abcdef0123456789abcdef"
GIVEN = {
    **{
        variable: f"postgresql+psycopg2://{service}:{SECRET}@127.0.0.1:1/{service}"
        for service, variable in DATABASE_URLS.items()
    },
    BOOTSTRAP: "127.0.0.1:1",
    "ALLOWED_HOSTS": "pay.example",
    "CURSOR_SECRET": f"{SECRET} and 'quoted'\n",
}
# SETTLE_HOME identifies the stack, and `settle up` sets HEALTH_DIR.
NOT_COMPARED = {"SETTLE_HOME", "HEALTH_DIR"}
COMPARED = {*PORTS, BIND_ADDRESS, *DATABASE_URLS.values(), BOOTSTRAP, BROKER_KIND, *SETTINGS}


def write_and_read_stack(folder: Path, given: Mapping[str, str]) -> Stack:
    """Write the file that `settle up` writes with these settings, and read the stack from it."""
    state = StateFolder(folder)
    with environment(given):
        state.write_env(planned_stack(state).environment)
    found = running_stack(state)
    assert found is not None
    return found


def test_the_same_settings_are_accepted(tmp_path: Path) -> None:
    running = write_and_read_stack(tmp_path, GIVEN)

    for given in (GIVEN, GIVEN | {"ORDERS_PORT": "8081", BIND_ADDRESS: "127.0.0.1"}):
        with environment(given):
            refuse_other_settings(running)
    with environment(running.environment):  # like a shell that has read .settle/env
        refuse_other_settings(running)


def other_value(name: str) -> str:
    return {**dict.fromkeys(PORTS, "18999"), BIND_ADDRESS: "0.0.0.0"}.get(name, "another-one")


@pytest.mark.parametrize("name", sorted(COMPARED - {BROKER_KIND}))
def test_the_error_for_a_changed_setting_names_it_and_shows_no_value(
    tmp_path: Path, name: str
) -> None:
    running = write_and_read_stack(tmp_path, GIVEN)

    with (
        environment(GIVEN | {name: other_value(name)}),
        pytest.raises(AlreadyRunningError) as raised,
    ):
        refuse_other_settings(running)

    assert str(raised.value).startswith(f"Settle is running with other settings: {name}. ")
    assert "run settle down, then settle up" in str(raised.value)
    assert SECRET not in str(raised.value)
    assert other_value(name) not in str(raised.value)


@pytest.mark.parametrize("name", sorted(GIVEN))
def test_a_setting_that_is_no_longer_given_is_refused(tmp_path: Path, name: str) -> None:
    running = write_and_read_stack(tmp_path, GIVEN)

    with environment(GIVEN | {name: ""}), pytest.raises(AlreadyRunningError) as raised:
        refuse_other_settings(running)

    assert f": {name}" in str(raised.value)


def test_the_error_names_all_settings_that_differ(tmp_path: Path) -> None:
    running = write_and_read_stack(tmp_path, GIVEN)
    given = {"CORS_ORIGINS": "https://shop.example", "PAYMENTS_PORT": "9080", "ALLOWED_HOSTS": ""}

    with environment(GIVEN | given), pytest.raises(AlreadyRunningError) as raised:
        refuse_other_settings(running)

    assert ": PAYMENTS_PORT, ALLOWED_HOSTS, CORS_ORIGINS. " in str(raised.value)


def test_the_default_broker_may_be_named_and_another_one_is_refused(tmp_path: Path) -> None:
    given = GIVEN | {BOOTSTRAP: ""}
    running = write_and_read_stack(tmp_path, given)

    with environment(given | {BROKER_KIND: "embedded"}):
        refuse_other_settings(running)
    with (
        environment(given | {BROKER_KIND: "kafka"}),
        pytest.raises(AlreadyRunningError, match=f": {BROKER_KIND}\\. "),
    ):
        refuse_other_settings(running)


def test_every_setting_of_the_readme_is_compared() -> None:
    _, _, table = README.read_text(encoding="utf-8").partition("## Settings")
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]

    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}

    assert named == COMPARED | NOT_COMPARED


def test_a_command_reads_the_settings_that_the_stack_runs_with(tmp_path: Path) -> None:
    running = write_and_read_stack(tmp_path, GIVEN)

    with environment({"CORS_ORIGINS": "https://shop.example", "ALLOWED_HOSTS": "other.example"}):
        take_environment(running)
        settings = read_web_settings("orders")

    assert settings.allowed_hosts == ("pay.example",)
    assert settings.cors_origins == ()
    assert settings.cursor_secret == GIVEN["CURSOR_SECRET"]


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", "foo", "a" * 64, "127.0.0.1:80"])
def test_the_error_for_an_address_that_cannot_be_bound_names_the_variable(
    tmp_path: Path, address: str
) -> None:
    with (
        environment(GIVEN | {BIND_ADDRESS: address}),
        pytest.raises(SettingsError, match=f"^{BIND_ADDRESS} is '{address}', and nothing can"),
    ):
        planned_stack(StateFolder(tmp_path))


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("localhost", "localhost"),
        ("::", "[::1]"),
        ("[::]", "[::1]"),
        ("::1", "[::1]"),
    ],
)
def test_an_api_is_reached_where_it_listens(tmp_path: Path, address: str, host: str) -> None:
    with environment({BIND_ADDRESS: address}):
        assert read_bind_address() == (address.strip("[]") or "127.0.0.1")

    running = write_and_read_stack(tmp_path, GIVEN | {BIND_ADDRESS: address})

    assert running.base_url("orders") == f"http://{host}:8081"
