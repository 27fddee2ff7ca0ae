"""Units as types: a number that names its unit cannot be mistaken for another."""

from typing import NewType

Bytes = NewType("Bytes", int)
Blocks = NewType("Blocks", int)
Tokens = NewType("Tokens", int)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer that is at least ``numerator / denominator``.

    >>> ceil_div(17, 16)
    2
    """
    return -(-numerator // denominator)


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of ``multiple`` that is at least ``value``.

    >>> round_up(2880, 256)
    3072
    """
    return ceil_div(value, multiple) * multiple


def format_gib(value: int) -> str:
    """Bytes as GiB with two decimals, as vLLM's log prints them.

    >>> format_gib(Bytes(3 * GIB // 2))
    '1.50 GiB'
    """
    return f"{value / GIB:.2f} GiB"
