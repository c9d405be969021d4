"""Unsigned varints of 32 bits."""

from __future__ import annotations

import io

import pytest

from settle_outbox.kafka.varint import VarintError, read_varint


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"\x00", 0),
        (b"\x7f", 127),
        (b"\x80\x01", 128),
        (b"\xac\x02", 300),
        (b"\xff\xff\xff\xff\x0f", 2**32 - 1),
    ],
)
def test_a_number_is_read_and_nothing_after_it(data: bytes, number: int) -> None:
    stream = io.BytesIO(data + b"\x05")

    found = read_varint(stream.read)

    assert found == number
    assert stream.read() == b"\x05"


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff\x10", b"\x80\x80\x80\x80\x80\x01", b"\xff" * 10]
)
def test_a_number_of_more_than_32_bits_is_refused(data: bytes) -> None:
    with pytest.raises(VarintError):
        read_varint(io.BytesIO(data).read)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x80"])
def test_a_number_that_ends_early_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not enough values"):
        read_varint(io.BytesIO(data).read)
