r"""Reading records whose headers have names that are not UTF-8.

kafka-python 3.0.12 takes such a record for a corrupt one: its poll raises once, and then never
returns. Other clients read it. Here the bytes of the name that are no text are read as ``\xff``,
and it is like any header that nobody knows.
"""

from __future__ import annotations

from typing import Any

from kafka.record.default_records import DefaultRecordBatch

_read_record = DefaultRecordBatch._read_msg  # noqa: SLF001 - the version is pinned


class _Lenient(bytes):
    """Bytes whose slices decode whatever they hold."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _Lenient(found) if isinstance(index, slice) else found

    def decode(self, *_: object) -> str:
        return super().decode("utf-8", "backslashreplace")


def _read_any_record(batch: Any) -> Any:
    try:
        return _read_record(batch)
    except UnicodeDecodeError:
        # The batch stands where it stood before this record: its position moves at the very end.
        batch._buffer = _Lenient(batch._buffer)  # noqa: SLF001
        return _read_record(batch)


def accept_any_header_name() -> None:
    """Have every consumer of this process read such records."""
    DefaultRecordBatch._read_msg = _read_any_record  # noqa: SLF001
