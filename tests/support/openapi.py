"""The services' descriptions, and their committed copies: ``make openapi`` renews those."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from support.web import NO_DATABASE, ROOT, open_app

if TYPE_CHECKING:
    from pathlib import Path

SERVICES = ("orders", "payments")


def description(service: str) -> dict[str, Any]:
    """What a service says of itself."""
    with open_app(service, NO_DATABASE) as app:
        found: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return found


def copy_of(service: str) -> Path:
    """Where the committed copy is."""
    return ROOT / "docs" / "openapi" / f"{service}.json"


def written(service: str) -> str:
    """The description as the copy has it: a line for each member, so that a change is seen."""
    return json.dumps(description(service), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in SERVICES:
        copy_of(name).write_text(written(name), encoding="utf-8")
