"""The engine is a separate distribution, which works without the rest of this project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.delivery import Delivery

# The first test takes long: it builds a wheel and creates an environment.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")

IMPORT_ALL = """
import importlib, pkgutil, sys
import settle_outbox
for module in pkgutil.walk_packages(settle_outbox.__path__, "settle_outbox."):
    importlib.import_module(module.name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, folder: Path) -> Path:
    """Build a wheel from a copy, because setuptools would use files of an earlier build."""
    copy = folder / "source"
    left_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(source, copy, ignore=left_out)
    run(UV, "build", "--wheel", "--out-dir", folder, copy, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def names(wheel: Path) -> Sequence[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "shared" / "outbox", tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of an environment that has only the engine and its requirements."""
    folder = tmp_path_factory.mktemp("environment")
    run(UV, "venv", "--python", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pins = ROOT / "constraints.txt"
    run(UV, "pip", "install", "--python", python, "--constraint", pins, wheel, cwd=folder)
    return python.parent


def test_every_module_is_imported_without_the_rest_of_the_project(installed: Path) -> None:
    imported = run(installed / "python", "-c", IMPORT_ALL, cwd=installed).split()

    assert "settle_outbox" in imported
    absent = {"services", "shared", "settle", "flask", "gunicorn", "supervisor", "rich"}
    assert absent.isdisjoint(imported)


def test_no_web_library_and_no_supervisor_is_installed_with_the_engine(installed: Path) -> None:
    found = run(UV, "pip", "freeze", "--python", installed / "python", cwd=installed)

    packages = {line.partition("==")[0].partition(" @")[0] for line in found.lower().splitlines()}
    assert "settle-outbox" in packages
    assert {"settle", "flask", "gunicorn", "supervisor", "rich"}.isdisjoint(packages)


@pytest.mark.parametrize("command", ["outbox-relay", "inbox-consumer"])
def test_the_engines_commands_run(installed: Path, command: str) -> None:
    assert f"Usage: {command}" in run(installed / command, "--help", cwd=installed)
    assert run(installed / command, "--version", cwd=installed).startswith(f"{command} ")


def test_the_wheel_has_its_types_and_its_licence(wheel: Path) -> None:
    found = names(wheel)

    assert "settle_outbox/py.typed" in found
    assert any(name.endswith("licenses/LICENSE") for name in found)
    assert {name.partition("/")[0].partition("-")[0] for name in found} == {
        "settle_outbox",
        "settle_outbox_commands",
    }


@pytest.fixture(scope="module")
def app_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("application"))


@pytest.fixture(scope="module")
def installed_app(installed: Path, app_wheel: Path) -> Path:
    """Return the programs of an environment with engine and application, but without a checkout."""
    python, pins = installed / "python", ROOT / "constraints.txt"
    run(UV, "pip", "install", "--python", python, "--constraint", pins, app_wheel, cwd=installed)
    return installed


@pytest.mark.acceptance
def test_the_operators_commands_work_without_a_checkout(
    installed_app: Path, delivery: Delivery, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "orders-relay.log").write_text("relay.started\n", encoding="utf-8")
    environ = {**os.environ, **delivery.environ, "SETTLE_HOME": str(tmp_path)}
    environ.pop("PYTHONPATH", None)

    def settle(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed_app / "settle", *arguments],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    findings = json.loads(settle("doctor", "--json").stdout)
    audit = settle("audit", "--second-look", "0", "--json")
    logs = settle("logs", "orders-relay")
    up = settle("up")

    migrations = {each["name"]: each["verdict"] for each in findings if "migr" in each["name"]}
    assert migrations == {"orders migrations": "ok", "payments migrations": "ok"}
    assert (audit.returncode, json.loads(audit.stdout)["clean"]) == (0, True), audit.stderr
    assert (logs.returncode, logs.stdout) == (0, "relay.started\n"), logs.stderr
    assert up.returncode == 1
    assert up.stderr == "Error: settle up runs from a checkout: run make up in one.\n"


def test_the_applications_wheel_does_not_hold_the_engine(app_wheel: Path) -> None:
    found = names(app_wheel)

    assert "services/orders/events.py" in found
    assert not [name for name in found if "outbox" in name]
