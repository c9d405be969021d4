"""The OpenAPI descriptions of the services, and their committed copies (``make openapi``)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from support.web import NO_DATABASE, ROOT, open_app

if TYPE_CHECKING:
    from pathlib import Path

SERVICES = ("orders", "payments")


def description(service: str) -> dict[str, Any]:
    """Return a service's OpenAPI description."""
    with open_app(service, NO_DATABASE) as app:
        found: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return found


def copy_of(service: str) -> Path:
    """Return the path of the committed copy."""
    return ROOT / "docs" / "openapi" / f"{service}.json"


def written(service: str) -> str:
    """Return the description as text, with one line for each member, so that diffs are small."""
    return json.dumps(description(service), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in SERVICES:
        copy_of(name).write_text(written(name), encoding="utf-8")
