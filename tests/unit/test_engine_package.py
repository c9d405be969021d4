"""The engine has one import name, because two names would be two copies of its state."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tomllib
from collections import defaultdict
from configparser import ConfigParser
from pathlib import Path

import pytest

import services
import settle
import settle_outbox
import shared

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "shared" / "outbox"


def test_each_file_is_one_module() -> None:
    for package in (services, settle, settle_outbox, shared):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)

    loaded: dict[str, set[str]] = defaultdict(set)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(str(ENGINE)):
            loaded[file].add(name)
    assert str(Path(settle_outbox.__file__)) in loaded
    assert [names for names in loaded.values() if len(names) > 1] == []


def test_the_engine_cannot_be_imported_by_its_path_in_the_checkout() -> None:
    with pytest.raises(ImportError, match="settle_outbox"):
        importlib.import_module("shared.outbox.src.settle_outbox")


def test_the_application_neither_requires_nor_contains_the_engine() -> None:
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    config = ConfigParser()
    config.read_string(text)

    assert "settle-outbox" not in text
    assert "shared.outbox*" in config["options.packages.find"]["exclude"]
    assert [path for path in (ENGINE, ENGINE / "src") if (path / "__init__.py").exists()] == []


def test_the_application_and_the_engine_have_the_same_upper_bounds_and_pins() -> None:
    """Lower bounds of the engine may be lower, because CI tests it with older versions."""
    config = ConfigParser()
    config.read_string((ROOT / "setup.cfg").read_text(encoding="utf-8"))
    application_versions = {
        line.split()[0]: line.rpartition(",")[2]
        for line in config["options"]["install_requires"].splitlines()
        if line and not line.startswith("#")
    }

    engine = tomllib.loads((ENGINE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    engine_versions = {line.split()[0]: line.rpartition(",")[2] for line in engine["dependencies"]}

    assert {name: application_versions.get(name) for name in engine_versions} == engine_versions
