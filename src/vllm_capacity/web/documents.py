"""Status documents, numbered and encoded once for however many ask."""

import json
import time
import zlib
from collections.abc import Callable

from vllm_capacity.compare.fleet import FleetAssessment
from vllm_capacity.status.descriptions import descriptions
from vllm_capacity.status.document import Selection, status_document

#: Turns the number of a document, and the document as JSON, into what is sent.
Form = Callable[[int, bytes], bytes]
# Selections are the clients' choice; so many are remembered of one document.
_MOST_ENCODED = 64
_GZIP = 16 + zlib.MAX_WBITS


class StatusDocuments:
    """Makes status documents of what is published; whatever differs gets a new number.

    Numbers begin at the Unix time of the start and grow by one, so that they grow over restarts
    too.

    Args:
        published: gives what was published last.
        scrape_interval_seconds: between collections.
        wall, monotonic: clocks.
    """

    def __init__(
        self,
        published: Callable[[], FleetAssessment],
        *,
        scrape_interval_seconds: float,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._published, self._interval = published, scrape_interval_seconds
        self._wall, self._monotonic = wall, monotonic
        self._fleet = FleetAssessment(targets=())
        self._generated, self._sequence = wall(), int(wall())
        self._looked_at: float | None = None
        self._encoded: dict[tuple[Selection, Form], bytes] = {}

    def newest(self, *, within_seconds: float = 0.0) -> int:
        """The number of the newest document; a look that recent need not be repeated."""
        now = self._monotonic()
        if self._looked_at is None or now - self._looked_at >= within_seconds:
            fleet = self._published()
            if self._looked_at is None or fleet != self._fleet:
                self._fleet, self._generated = fleet, self._wall()
                self._sequence += 1
                self._encoded.clear()
            self._looked_at = now
        return self._sequence

    def encoded(self, selection: Selection, form: Form) -> bytes:
        """The document of that number in a form; made once for all who ask for it."""
        key = (selection, form)
        if key not in self._encoded:
            if len(self._encoded) >= _MOST_ENCODED:
                self._encoded.clear()
            self._encoded[key] = form(self._sequence, self._document(selection))
        return self._encoded[key]

    def _document(self, selection: Selection) -> bytes:
        return as_json(
            status_document(
                self._fleet,
                sequence=self._sequence,
                generated_timestamp_seconds=self._generated,
                scrape_interval_seconds=self._interval,
                selection=selection,
            )
        )


def as_json(document: object) -> bytes:
    """A document as compact JSON."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def plain(_: int, document: bytes) -> bytes:
    """The document as it is."""
    return document


def described(_: int, document: bytes) -> bytes:
    """The document with what its numbers mean."""
    return b"%s,%s" % (document[:-1], as_json({"descriptions": descriptions()})[1:])


def gzipped(_: int, document: bytes) -> bytes:
    """The document as a gzip file."""
    packer = zlib.compressobj(wbits=_GZIP)
    return packer.compress(document) + packer.flush()


def event(number: int, document: bytes) -> bytes:
    """The document as a server-sent event."""
    return b"id: %d\nevent: status\ndata: %s\n\n" % (number, document)


def gzipped_event(number: int, document: bytes) -> bytes:
    """The same as a part of any gzip stream, see :func:`gzip_part`."""
    return gzip_part(event(number, document))


def gzip_part(text: bytes) -> bytes:
    """A part of a gzip stream that stands for itself, and can follow and be followed by others.

    A full flush ends it at a whole byte and looks back at nothing before (RFC 1951; zlib's
    ``Z_FULL_FLUSH``). So one compression serves every stream.
    """
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH)


#: What a gzip stream begins with: no name, no time, an unknown system (RFC 1952).
GZIP_BEGIN = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
