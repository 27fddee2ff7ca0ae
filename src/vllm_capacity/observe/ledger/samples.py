"""How many samples of one prompt clients ask for (``n``), learned from those that finished."""

import math

from vllm_capacity.observe.engine_snapshot import Histogram

# Clients of the present that the share of ``n`` samples rests on, at least; and as many of them the
# past is worth.
_RECENT = 100
_PAST = 5.0
_FEW = 20.0


class Samples:
    """How many samples clients asked for lately, from those that finished."""

    def __init__(self) -> None:
        self._older: Histogram | None = None
        self._old: Histogram | None = None
        self._now: Histogram | None = None

    def record(self, params_n: Histogram | None) -> None:
        """Take the histogram of ``request_params_n`` into account."""
        before, self._now = self._now, params_n
        if params_n is None or before is None or params_n.count < before.count:
            self._older = self._old = params_n
        elif self._old is not None and params_n.count - self._old.count >= _RECENT:
            self._older, self._old = self._old, params_n

    @property
    def mean(self) -> float:
        """Samples of a client lately; of all there were while there were few."""
        now, then = self._now, self._older
        if now is None or then is None or not now.count:
            return 1.0
        count, total = now.count - then.count, now.total - then.total
        # The past counts as much as a few of the present.
        return max(1.0, (total + _PAST * now.total / now.count) / (count + _PAST))

    @property
    def are_alone(self) -> bool:
        """Whether nobody of many asked for more than one."""
        now, then = self._now, self._older
        if now is None or then is None:
            return True
        return self.mean == 1 and now.count >= _FEW

    def log_share(self, n: int) -> float:
        """Logarithm of the share of clients that ask for ``n``."""
        now, then = self._now, self._older
        if now is None or then is None or not now.count:
            return math.log(0.6 if n == 1 else 0.04)
        earlier = dict(then.buckets)
        below = below_then = lower = 0.0
        for bound, cumulated in now.buckets:
            if n <= bound:
                width = min(bound, 2 * n) - lower
                recent = cumulated - earlier.get(bound, 0.0) - (below - below_then)
                past = (cumulated - below) / now.count
                share = (recent + _PAST * past + 0.05 * width) / width
                return math.log(share / (now.count - then.count + _PAST + 1))
            below, below_then, lower = cumulated, earlier.get(bound, 0.0), bound
        return -n * math.log(1 + self.mean)
