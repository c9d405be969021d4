"""All files of a release state the same version and packages (RELEASING.md)."""

from __future__ import annotations

import json
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def version() -> str:
    config = ConfigParser()
    config.read_string(read("setup.cfg"))
    return config["metadata"]["version"]


def test_the_engine_the_image_and_the_descriptions_have_the_version() -> None:
    engine = tomllib.loads(read("shared/outbox/pyproject.toml"))["project"]["version"]
    labels = re.findall(r'image\.version="([^"]+)"', read("deploy/Dockerfile"))
    pods = re.findall(r"newTag: (\S+)", read("deploy/kubernetes/kustomization.yaml"))
    guide = re.findall(r"/settle:(\S+)", read("docs/how-to/kubernetes.md"))
    described = [
        json.loads(path.read_text("utf-8"))["info"]["version"]
        for path in (ROOT / "docs" / "openapi").glob("*.json")
    ]

    assert {engine, *labels, *pods, *guide, *described} == {version()}
    assert all([labels, pods, guide])


@pytest.mark.parametrize("name", ["CHANGELOG.md", "shared/outbox/CHANGELOG.md"])
def test_a_changelog_has_the_version_below_what_is_unreleased(name: str) -> None:
    first, second, *_ = re.findall(r"^## (.+)$", read(name), re.MULTILINE)

    assert first == "Unreleased"
    assert re.fullmatch(rf"{re.escape(version())} - \d{{4}}-\d\d-\d\d", second)


def test_the_notices_name_each_package_of_a_release() -> None:
    """Except setuptools, which only builds the release."""
    installed = re.findall(r"^([\w.-]+)==", read("requirements.txt"), re.MULTILINE)
    named = re.findall(r"^\| ([\w.-]+) +\|", read("THIRD-PARTY-NOTICES.md"), re.MULTILINE)

    assert {*map(canonicalize_name, named[1:])} == {*map(canonicalize_name, installed)} - {
        "setuptools"
    }
