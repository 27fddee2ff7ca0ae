"""A client that sends requests of known lengths and remembers when every token came."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx


@dataclass(slots=True)
class Stream:
    """One request as its client sees it: when how many tokens had come."""

    prompt_tokens: int
    output_tokens: int
    sent_at: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    ended_at: float | None = None

    def received(self, at: float) -> int:
        """Output tokens that had arrived at that time."""
        return max((count for when, count in self.arrivals if when <= at), default=0)

    def alive(self, at: float) -> bool:
        return self.sent_at <= at and (self.ended_at is None or at < self.ended_at)

    def blocks(self, at: float, block_size: int) -> int:
        """Blocks that the tokens known to the client fill; 0 before the first token and after."""
        received = self.received(at)
        if not received or not self.alive(at):
            return 0
        return -(-(self.prompt_tokens + received) // block_size)

    def tokens(self, at: float) -> int:
        received = self.received(at)
        return self.prompt_tokens + received if received and self.alive(at) else 0


@dataclass(slots=True)
class Client:
    """Sends completions of known lengths to vLLM and remembers every arrival."""

    url: str
    model: str
    http: httpx.AsyncClient
    streams: list[Stream] = field(default_factory=list)

    async def complete(self, prompt: Sequence[int], output_tokens: int) -> Stream:
        """One streamed completion of exactly `output_tokens` tokens."""
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        stream = Stream(len(prompt), output_tokens, time.time())
        self.streams.append(stream)
        async with self.http.stream("POST", f"{self.url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            # By "\n" alone: aiter_lines also cuts at U+0085 and U+2028, which random tokens make.
            rest = b""
            async for chunk in answer.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._note(stream, line)
        stream.ended_at = time.time()
        return stream

    @staticmethod
    def _note(stream: Stream, line: bytes) -> None:
        data = line.removeprefix(b"data: ").strip()
        if not data or data == b"[DONE]":
            return
        usage = json.loads(data).get("usage") or {}
        stream.arrivals.append((time.time(), int(usage.get("completion_tokens", 0))))

    def blocks_between(self, start: float, end: float, block_size: int) -> tuple[int, int]:
        """Least and most blocks that the requests held at any moment of the interval.

        A request's prompt may already hold blocks before its first token arrives, so what is sent
        counts for the upper end only.
        """
        low = sum(min(s.blocks(start, block_size), s.blocks(end, block_size)) for s in self.streams)
        high = sum(
            -(-(s.prompt_tokens + s.received(end)) // block_size)
            for s in self.streams
            if s.sent_at <= end and (s.ended_at is None or s.ended_at > start)
        )
        return low, high

    def tokens_between(self, start: float, end: float) -> tuple[int, int]:
        """Least and most tokens of prompts and outputs in flight at any moment of the interval."""
        low = sum(min(s.tokens(start), s.tokens(end)) for s in self.streams)
        high = sum(
            s.prompt_tokens + s.received(end)
            for s in self.streams
            if s.received(end) and (s.ended_at is None or s.ended_at > start)
        )
        return low, high
