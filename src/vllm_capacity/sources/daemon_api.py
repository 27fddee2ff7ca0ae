"""The API of a running ``vllm-capacity serve``, asked for what it knows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlencode

from vllm_capacity.errors import SourceError
from vllm_capacity.sources.vllm_http import VllmHttp

API_VERSION = 1
_NOT_THERE = (404, 405)


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusAnswer:
    """A status document.

    Attributes:
        document: as ``docs/api.md`` describes it.
        age_seconds: how old it was when it came, by the daemon's own clock.
    """

    document: Mapping[str, Any]
    age_seconds: float


class DaemonApi(VllmHttp):
    """One daemon, asked as a vLLM server is: with the same credentials, limits and errors."""

    async def status(self) -> StatusAnswer | None:
        """Everything that the daemon knows; None where a server answers that is no daemon.

        Raises:
            SourceError: nobody answers, or it cannot be told what does.
        """
        page = await self._get("/api/v1/status", accept=(200, *_NOT_THERE))
        document = _object(page.body) if page.status not in _NOT_THERE else None
        if document is None or not isinstance(document.get("api_version"), int):
            return None
        if document["api_version"] != API_VERSION:
            problem = f"speaks version {document['api_version']} of the API, not {API_VERSION}"
            raise SourceError("invalid", f"{self.url}: {problem}")
        return StatusAnswer(document=document, age_seconds=_age_seconds(document, page.date))

    async def history(
        self, target: str, engine: str, *, since: float = 0.0
    ) -> Mapping[str, Any] | None:
        """The last hour of one engine, after a Unix time; None where the daemon knows of none.

        Raises:
            SourceError: it does not answer as it should.
        """
        asked = urlencode({"target": target, "engine": engine, "since": since})
        page = await self._get(f"/api/v1/history?{asked}", accept=(200, *_NOT_THERE))
        return None if page.status in _NOT_THERE else _object(page.body)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _age_seconds(document: Mapping[str, Any], date: str | None) -> float:
    """From when the document was made to when it was sent, both by the daemon's clock."""
    made = document.get("generated_timestamp_seconds")
    try:
        sent = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, sent - made) if isinstance(made, int | float) else 0.0
