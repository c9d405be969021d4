"""A sentence for a name that does not exist."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def unknown_name(kind: str, name: str, known: Sequence[str]) -> str:
    """Return a sentence that names the closest known name, and all of them.

    Args:
        kind: what the name is for, such as ``service``.
        name: the unknown name.
        known: the names that exist.
    """
    close = get_close_matches(name, known, n=1)
    question = f" Did you mean {close[0]}?" if close else ""
    all_names = ", ".join(known) or "none is installed"
    return f"There is no {kind} {name!r}.{question} {kind.capitalize()} names: {all_names}."
