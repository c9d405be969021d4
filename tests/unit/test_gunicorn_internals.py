"""The undocumented parts of gunicorn that the worker uses are checked when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from gunicorn.config import Config
from gunicorn.workers.gthread import ThreadWorker

from shared.web.server import gunicorn_internals
from shared.web.server.gunicorn_internals import GunicornVersionError, check
from shared.web.server.worker import Worker

TESTS = Path(__file__).resolve().parents[1]
SETUP = TESTS.parent / "setup.cfg"


def test_the_installed_gunicorn_is_the_pinned_one_and_has_all_parts() -> None:
    check()

    assert f"gunicorn =={gunicorn_internals.VERSION}" in SETUP.read_text(encoding="utf-8")


def test_the_master_refuses_another_version_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gunicorn_internals, "__version__", "28.0.0")

    with pytest.raises(GunicornVersionError, match=r"pip install gunicorn==27\.0\.1"):
        Worker.check_config(Config(), None)


def test_the_error_names_a_missing_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ThreadWorker, "_cap_keepalive")

    with pytest.raises(GunicornVersionError, match=r"ThreadWorker\._cap_keepalive"):
        check()


def test_no_other_module_uses_private_names_of_gunicorn() -> None:
    modules = (TESTS.parent / "shared" / "web").rglob("*.py")
    suppressed = [path.name for path in modules if "SLF001" in path.read_text(encoding="utf-8")]

    assert suppressed == ["gunicorn_internals.py"]
