"""A stack's folder that another command holds, or that has files of the wrong kind."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from queue import Queue
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING
from xmlrpc.client import Fault
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

import pytest

from settle.stack import state as states
from settle.stack.definition import running_stack
from settle.stack.reset import reset
from settle.stack.state import StateError, StateFolder
from settle.stack.supervisor import Supervisor, SupervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "home with spaces")
    made.create()
    return made


@pytest.mark.parametrize(
    ("checkout", "home", "refused"),
    [
        ("/srv/a 50%s checkout", None, None),
        ("/srv/shop [1]", None, "'/srv/shop [1]' must not contain '[': move the checkout"),
        ("/srv/a:b", None, "'/srv/a:b' must not contain ':': move the checkout"),
        ("/srv/shop", "/data/a space", None),
        ("/srv/shop", "/data/50%", "must not contain '%': set SETTLE_HOME to another folder"),
    ],
)
def test_a_path_that_a_program_could_not_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, checkout: str, home: str | None, refused: str | None
) -> None:
    monkeypatch.setattr(states, "CHECKOUT", Path(checkout))
    folder = StateFolder(Path(home or f"{checkout}/.settle"))

    if refused is None:
        folder.refuse_unusable_paths()
    else:
        with pytest.raises(StateError, match=re.escape(refused)):
            folder.refuse_unusable_paths()


def ignore(_: str) -> None:
    """Ignore the message."""


def test_a_waiting_command_names_the_command_it_waits_for(state: StateFolder) -> None:
    messages: Queue[str] = Queue()

    def wait() -> None:
        with state.locked(messages.put):
            messages.put("held")

    waiting = threading.Thread(target=wait)
    with state.locked(ignore):
        waiting.start()
        message = messages.get(timeout=10)
    waiting.join(timeout=10)

    assert message == f"Waiting for another settle up, down or reset (pid {os.getpid()}) to end."
    assert messages.get(timeout=10) == "held"


def test_a_command_that_waited_too_long_names_the_other_command(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "LOCK_TIMEOUT_S", 0)

    with (
        state.locked(ignore),
        pytest.raises(StateError, match=rf"\(pid {os.getpid()}\): end it first"),
        state.locked(ignore),
    ):
        pass


@pytest.mark.parametrize("name", ["logs", "run", "lock"])
def test_the_error_names_a_path_of_the_wrong_kind(state: StateFolder, name: str) -> None:
    path = state.home / name
    if path.is_dir():
        for each in sorted(path.rglob("*"), reverse=True):
            each.rmdir()
        path.rmdir()
        path.write_text("a file in place of a folder")
    else:
        path.mkdir()

    with pytest.raises(StateError) as raised, state.locked(ignore):
        pass

    assert str(raised.value).startswith(f"{state.home} cannot be used (")
    assert f"move {path} away, or set SETTLE_HOME to another folder" in str(raised.value)


def test_the_error_names_a_file_in_place_of_a_parent_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(StateError, match=f"move {file} away, or set SETTLE_HOME"):
        StateFolder(file / "home").create()


@pytest.mark.parametrize("text", ["no variable", "export A='not closed", "\xff"])
def test_the_error_names_an_edited_environment_file(state: StateFolder, text: str) -> None:
    state.env.write_text(text, encoding="latin-1")

    with pytest.raises(StateError, match=f"{state.env} cannot be read .*: remove it, then run"):
        running_stack(state)


def test_the_error_names_a_folder_in_place_of_the_environment_file(state: StateFolder) -> None:
    state.env.mkdir()

    with pytest.raises(StateError, match=f"{state.env} cannot be read .*: remove it, then run"):
        running_stack(state)


def test_a_reset_removes_a_partly_written_environment_file(state: StateFolder) -> None:
    """`settle up` was killed while it wrote the file, which contains passwords."""
    state.new_env.write_text("export ORDERS_DATABASE_URL=")

    reset(state, ignore)

    assert not state.home.exists()


class _Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ()  # any path
    disable_nagle_algorithm = False  # only TCP has this option


class _Ending(ThreadingMixIn, UnixStreamServer, SimpleXMLRPCDispatcher):
    """A supervisord that is shutting down."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        SimpleXMLRPCDispatcher.__init__(self)
        UnixStreamServer.__init__(self, str(path), _Handler)
        self.logRequests = False
        for name in ("getPID", "getAllProcessInfo"):
            self.register_function(_refuse, f"supervisor.{name}")


def _refuse() -> None:
    raise Fault(6, "SHUTDOWN_STATE")


@pytest.fixture
def ending(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "sock"
    with _Ending(path) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield path
        server.shutdown()
        serving.join()


def test_a_supervisord_that_is_shutting_down_counts_as_not_running(ending: Path) -> None:
    supervisor = Supervisor(ending)

    try:
        assert supervisor.pid() is None
        with pytest.raises(SupervisorError, match="is shutting down: run settle up again"):
            supervisor.processes()
    finally:
        supervisor.close()
