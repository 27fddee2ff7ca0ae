"""Numbers as people read them: rounded, and never more certain than they are."""

import math

_DURATIONS = ((90.0, 5.0, "s", 1.0), (90 * 60.0, 1.0, "min", 60.0), (36 * 3600.0, 1.0, "h", 3600.0))


def percent(ratio: float) -> str:
    """A share as whole percents; what is neither nothing nor all is not rounded to it.

    >>> percent(0.618), percent(0.0), percent(0.001), percent(0.999)
    ('62 %', '0 %', 'under 1 %', 'over 99 %')
    """
    if 0 < ratio < 0.005:
        return "under 1 %"
    if 0.995 <= ratio < 1:
        return "over 99 %"
    return f"{ratio:.0%}".replace("%", " %")


def about(count: int) -> str:
    """A count; beyond 100 to two digits, rounded down so that it promises nothing.

    >>> about(14), about(1289)
    ('14', 'about 1,200')
    """
    if count <= 100:
        return str(count)
    step = 10 ** (len(str(count)) - 2)
    return f"about {count // step * step:,}"


def duration(seconds: float) -> str:
    """A time to come or gone.

    >>> duration(41), duration(545), duration(7300), duration(200_000)
    ('40 s', '9 min', '2 h', '2 days')
    """
    for below, step, unit, length in _DURATIONS:
        if seconds < below:
            return f"{max(1, round(seconds / length / step)) * step:.0f} {unit}"
    return f"{math.floor(seconds / 86400)} days"


def counted(count: int, one: str, many: str) -> str:
    """A count with its noun.

    >>> counted(1, "request", "requests"), counted(1200, "request", "requests")
    ('1 request', '1,200 requests')
    """
    return f"{count:,} {one if count == 1 else many}"
