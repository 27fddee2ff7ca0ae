"""The metrics page, encoded no oftener than it is worth."""

import gzip
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

_GZIP_FROM_BYTES = 1024
# However many ask, encoding takes a tenth of a core at most.
_REUSED_FOR = 9.0


class MetricsPage:
    """Encodes what a registry holds.

    A page that took 10 ms is handed out again for 90 ms: far less than any scrape interval, and
    enough that a flood of requests does not keep Prometheus waiting.

    Args:
        registry: what is shown.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._clock = registry, clock
        self._pages: dict[tuple[str, bool], tuple[bytes, float]] = {}

    def encoded(
        self, accept: str, names: Sequence[str], *, compressed: bool
    ) -> tuple[bytes, dict[str, str]]:
        """The page and its headers.

        Args:
            accept: header of the request; says which format.
            names: of the series wanted; empty: all.
            compressed: whether gzip is understood.
        """
        encode, content_type = choose_encoder(accept)
        key, begun = (content_type, compressed), self._clock()
        page, until = self._pages.get(key, (b"", begun))
        if names or begun >= until:
            registry = self._registry.restricted_registry(names) if names else self._registry
            page = encode(registry)
            if compressed and len(page) >= _GZIP_FROM_BYTES:
                page = gzip.compress(page, compresslevel=1)
            if not names:
                now = self._clock()
                self._pages[key] = (page, now + _REUSED_FOR * (now - begun))
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if page[:2] == b"\x1f\x8b":  # no page in plain text starts so
            headers["Content-Encoding"] = "gzip"
        return page, headers
