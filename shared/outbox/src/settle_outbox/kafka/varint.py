"""Read unsigned varints of 32 bits: base 128, with the least significant group first.

Kafka uses them for lengths in record batches and for compact fields (KIP-482). Snappy uses them for
the sizes of blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# After a byte of this value or more, another byte follows.
VARINT_MORE = 0x80
VARINT_MAX_BYTES = 5
_LIMIT = 1 << 32


class VarintError(ValueError):
    """A number has more than 32 bits."""


def read_varint(read: Callable[[int], bytes]) -> int:
    """Read a varint.

    Args:
        read: returns the requested number of bytes.

    Raises:
        VarintError: the number has more than 32 bits.
        ValueError: the bytes end too early.
    """
    number = 0
    for position in range(VARINT_MAX_BYTES):
        (byte,) = read(1)
        number |= (byte & ~VARINT_MORE) << (7 * position)
        if byte < VARINT_MORE and number < _LIMIT:
            return number
    raise VarintError("a number has more than 32 bits")
