"""The one base of every error this project raises on purpose."""

from __future__ import annotations


class SettleError(Exception):
    """An error with a sentence a person can act on."""
