"""Numbers as they stand on the screen. Unknown is a word, never 0."""

import math

from vllm_capacity.status.wording import duration, percent
from vllm_capacity.units import GIB, MIB

UNKNOWN = "unknown"
#: The same where a table has no room for the word.
SHORT_UNKNOWN = "?"


def count(value: float | None, unknown: str = UNKNOWN) -> str:
    """A number of things.

    >>> count(8191), count(None), count(0.0)
    ('8,191', 'unknown', '0')
    """
    return unknown if value is None else f"{value:,.0f}"


def share(value: float | None, unknown: str = UNKNOWN) -> str:
    """A ratio in percent.

    >>> share(0.618), share(None)
    ('62 %', 'unknown')
    """
    return unknown if value is None else percent(value)


def short_share(value: float | None) -> str:
    """The same in as few characters as a table has.

    >>> short_share(0.001), short_share(0.999), short_share(None)
    ('<1 %', '>99 %', '?')
    """
    return share(value, SHORT_UNKNOWN).replace("under ", "<").replace("over ", ">")


def signed_share(value: float | None, unknown: str = UNKNOWN) -> str:
    """An error in percent of what was measured.

    >>> signed_share(-0.0312), signed_share(0.0)
    ('-3.1 %', '+0.0 %')
    """
    return unknown if value is None else f"{value * 100:+.1f} %"


def size(value: float | None, unknown: str = UNKNOWN) -> str:
    """Bytes.

    >>> size(3 * GIB), size(5 * MIB), size(None)
    ('3.00 GiB', '5.0 MiB', 'unknown')
    """
    if value is None:
        return unknown
    if abs(value) < GIB / 10:
        return f"{value / MIB:.1f} MiB"
    return f"{value / GIB:.2f} GiB"


def rate(value: float | None) -> str:
    """Things a second.

    >>> rate(1.234), rate(None)
    ('1.23/s', 'unknown')
    """
    return UNKNOWN if value is None else f"{value:.2f}/s"


def until(value: float | None, unknown: str = UNKNOWN) -> str:
    """How long until the cache is full.

    >>> until(545), until(math.inf), until(0.0)
    ('9 min', 'not filling', 'now')
    """
    if value is None:
        return unknown
    return "not filling" if math.isinf(value) else "now" if value <= 0 else duration(value)


def age(seconds: float) -> str:
    """How old something is, whole seconds while they matter.

    >>> age(2.4), age(119), age(7300)
    ('2 s', '119 s', '2 h')
    """
    return f"{seconds:.0f} s" if seconds < 120 else duration(seconds)
