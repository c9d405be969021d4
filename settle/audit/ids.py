"""Ids in the form of the scratch database: the sixteen bytes of a UUID."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable


def parse_uuid(given: Any) -> bytes | None:
    """Return the bytes of a UUID in text; None if it is not a UUID."""
    try:
        return UUID(given).bytes
    except (ValueError, TypeError, AttributeError):
        return None


def show_uuid(id_: bytes) -> str:
    """Return the UUID as text."""
    return str(UUID(bytes=id_))


def as_uuids(ids: Iterable[bytes]) -> list[str]:
    """Return the UUIDs as a parameter of a PostgreSQL query."""
    return [show_uuid(id_) for id_ in ids]
