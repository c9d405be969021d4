"""Every command: its help, exit codes, errors and completion."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from settle.stack.logs import NAMES
from support.commands import CLIS, COMMANDS, PAGE, find, page

ROOT = Path(__file__).resolve().parents[2]
NO_EVENT = "01980000-0000-7000-8000-000000000001"
# The arguments of a command in addition to its service. New commands with arguments are added here.
NEEDED = {
    "outbox-relay replay": ["--since", "1h"],
    "outbox-relay refused show": [NO_EVENT],
    "outbox-relay refused retry": [NO_EVENT],
    "outbox-relay refused discard": [NO_EVENT],
    "inbox-consumer dead-letters show": ["1"],
    "inbox-consumer dead-letters retry": ["1"],
    "inbox-consumer dead-letters discard": ["1"],
    "inbox-consumer dead-letters restore": ["1"],
}


def run(path: tuple[str, ...], *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(CLIS[path[0]], [*path[1:], *arguments], prog_name=path[0])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


WITH_SERVICE = [
    path for path in COMMANDS if any(each.name == "service" for each in find(path).params)
]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_the_exit_codes(path: tuple[str, ...]) -> None:
    code, out, err = run(path, "--help")
    assert (code, err) == (0, "")
    assert "Exit codes: 0 " in out
    if not isinstance(find(path), click.Group):
        lines = [line.strip() for line in out.splitlines()]
        # The example is on a separate line, so that it can be copied.
        assert any(re.fullmatch(f"Example: {' '.join(path)}.*", line) for line in lines), out
    assert "\\b" not in out
    assert run(path, "-h") == (0, out, "")


def test_the_page_of_commands_is_up_to_date() -> None:
    """If this fails, run ``make commands`` and review the difference."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("path", WITH_SERVICE, ids=" ".join)
def test_the_error_for_an_unknown_service_lists_the_services(path: tuple[str, ...]) -> None:
    code, out, err = run(path, "shipping", *NEEDED.get(" ".join(path), []))
    assert (code, out) == (1, "")
    assert err == "Error: There is no service 'shipping'. Service names: orders, payments.\n"


def test_the_error_for_a_misspelled_service_suggests_the_right_one() -> None:
    code, out, err = run(("settle", "doctor"), "paymnets")

    assert (code, out) == (1, "")
    assert err == (
        "Error: There is no service 'paymnets'. Did you mean payments?"
        " Service names: orders, payments.\n"
    )


def test_all_commands_of_the_engine_take_a_service() -> None:
    groups = {
        ("outbox-relay",),
        ("outbox-relay", "refused"),
        ("inbox-consumer",),
        ("inbox-consumer", "dead-letters"),
    }
    with_service = {path for path in WITH_SERVICE if path[0] != "settle"}
    assert {path for path in COMMANDS if path[0] != "settle"} == with_service | groups


@pytest.mark.parametrize("name", CLIS)
def test_version_and_wrong_usage(name: str) -> None:
    code, out, _ = run((name,), "--version")
    assert code == 0
    assert out.startswith(f"{name} 0.")
    code, out, err = run((name,), "--no-such-option")
    assert (code, out) == (2, "")
    assert "Error: No such option '--no-such-option'" in err


def test_the_error_for_an_unknown_process_lists_the_processes() -> None:
    code, out, err = run(("settle", "logs"), "orders")
    assert (code, out) == (1, "")
    assert err == (
        "Error: There is no process 'orders'. Did you mean orders-api?"
        f" Process names: {', '.join(NAMES)}.\n"
    )


def test_completion_knows_services_and_processes() -> None:
    def completed(name: str, *words: str) -> list[str]:
        complete = ShellComplete(CLIS[name], {}, name, "_COMPLETE")
        return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]

    for path in WITH_SERVICE:
        assert completed(*path, "") == ["orders", "payments"]
        assert completed(*path, "pay") == ["payments"]
    assert completed("settle", "logs", "orders-") == [n for n in NAMES if n.startswith("orders-")]


def test_colours_are_used_on_terminals_only_and_not_with_no_color() -> None:
    command = [f"{sysconfig.get_path('scripts')}/settle", "logs", "orders"]

    def said(**env: str) -> str:
        leader, follower = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | env
        subprocess.run(command, stderr=follower, env=environment, check=False, timeout=30)
        os.close(follower)
        with os.fdopen(leader, "rb") as screen:
            return screen.read1().decode()

    assert "\x1b[31mError:" in said()
    assert said(NO_COLOR="1").startswith("Error: ")
    piped = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert piped.stderr.startswith(b"Error: ")


def test_make_status_shows_that_nothing_runs_and_succeeds(tmp_path: Path) -> None:
    scripts = sysconfig.get_path("scripts")
    # The path is relative, because make splits a path at a space.
    bin_ = os.path.relpath(scripts, ROOT)
    command = ["make", "--old-file=.venv/.runtime", "status", f"BIN={bin_}"]
    # If make runs these tests, it sets variables that would change this inner make.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    made, direct = (
        subprocess.run(
            each,
            env=environ | {"SETTLE_HOME": str(tmp_path / "none")},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        for each in (command, [f"{scripts}/settle", "status"])
    )

    assert (made.returncode, made.stderr) == (0, "")
    assert "Settle is not running. Run settle up to start it." in made.stdout
    assert (direct.returncode, direct.stdout) == (3, made.stdout)


def test_make_up_installs_the_runtime_and_make_test_the_rest() -> None:
    # If make runs these tests, it sets variables that would change this inner make.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    up, test = (
        subprocess.run(
            ["make", "--dry-run", "--always-make", goal],
            env=environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        for goal in ("up", "test")
    )

    for commands in (up, test):
        assert ".[embedded]" in commands
        assert "Installing what runs Settle" in commands
    assert "test,dev" in test
    assert "test,dev" not in up


@pytest.mark.parametrize("package", ["rich", "settle_outbox", "settle_outbox_commands"])
def test_a_package_that_is_not_installed_is_named(tmp_path: Path, package: str) -> None:
    """A `git pull` added the package, or the engine was not installed with the application."""
    hide = (
        "import importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod(\n"
        f"    lambda _, name, *rest: None if name == {package!r} else find(name, *rest))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide, encoding="ascii")
    done = subprocess.run(
        [sys.executable, "-c", "from settle.entry import main; main()", "status"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    said = f"Error: The package {package} is not installed: run make install.\n"
    assert done.stderr == said.encode()


@pytest.mark.parametrize("command", ["settle", "outbox-relay", "inbox-consumer", "outbox-doctor"])
def test_an_interrupt_while_modules_are_loaded_shows_no_traceback(
    tmp_path: Path, command: str
) -> None:
    press = (
        "import importlib.machinery as m, signal\n"
        "find = m.PathFinder.find_spec\n"
        "def press(_, name, *rest):\n"
        "    if name == 'click':\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return find(name, *rest)\n"
        "m.PathFinder.find_spec = classmethod(press)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(press, encoding="ascii")

    done = subprocess.run(
        ["env", "--default-signal=INT", f"{sysconfig.get_path('scripts')}/{command}", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
        timeout=30,
    )

    assert (done.returncode, done.stderr) == (130, b"Error: Interrupted.\n")
