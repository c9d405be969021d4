"""Ids as the scratch database keeps them: the sixteen bytes of a UUID."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable


def parse_uuid(given: Any) -> bytes | None:
    """The bytes of a UUID in text; None for what is none."""
    try:
        return UUID(given).bytes
    except (ValueError, TypeError, AttributeError):
        return None


def show_uuid(id_: bytes) -> str:
    """As people write it."""
    return str(UUID(bytes=id_))


def as_uuids(ids: Iterable[bytes]) -> list[str]:
    """As PostgreSQL takes them for a parameter."""
    return [show_uuid(id_) for id_ in ids]
