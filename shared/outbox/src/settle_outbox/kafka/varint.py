"""Read unsigned varints of 32 bits: base 128, the least significant group first.

Lengths in Kafka's record batches have this form, as have compact fields of Kafka's protocol
(KIP-482), and the sizes of Snappy's blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A byte of this value or more is followed by another one.
VARINT_MORE = 0x80
VARINT_MAX_BYTES = 5
_LIMIT = 1 << 32


class VarintError(ValueError):
    """A number has more than 32 bits."""


def read_varint(read: Callable[[int], bytes]) -> int:
    """Read a varint.

    Args:
        read: returns as many bytes as it is asked for.

    Raises:
        VarintError: the number has more than 32 bits.
        ValueError: the bytes end before it.
    """
    number = 0
    for position in range(VARINT_MAX_BYTES):
        (byte,) = read(1)
        number |= (byte & ~VARINT_MORE) << (7 * position)
        if byte < VARINT_MORE and number < _LIMIT:
            return number
    raise VarintError("a number has more than 32 bits")
