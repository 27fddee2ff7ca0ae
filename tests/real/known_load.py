"""A client that sends requests of known lengths and remembers when every token came."""

from __future__ import annotations

import asyncio
import json
import random
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What vLLM's page shows, the client sees a little earlier or later: the page is renewed once per
# step, and on two busy cores a client may come late to read its tokens.
EARLIER_SECONDS, LATER_SECONDS, STEP_SECONDS = 0.5, 1.5, 0.1


def near(taken_at: float) -> list[tuple[float, float]]:
    """Short intervals around the time of a sample, one step long."""
    steps = range(-round(EARLIER_SECONDS / STEP_SECONDS), round(LATER_SECONDS / STEP_SECONDS))
    return [(taken_at + k * STEP_SECONDS, taken_at + (k + 1) * STEP_SECONDS) for k in steps]


def after(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since this was called."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is asked for, and when the client hangs up: at a token, or after a time, or never."""

    prompt: Sequence[int]
    output_tokens: int
    n: int = 1
    hang_up_tokens: int | None = None
    hang_up_seconds: float | None = None


@dataclass(slots=True)
class Stream:
    """One request as its client sees it: when how many tokens had come, of all its answers."""

    prompt_tokens: int
    output_tokens: int
    sent_at: float
    n: int = 1
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    by_choice: dict[int, int] = field(default_factory=dict)
    hung_up: bool = False
    ended_at: float | None = None

    def note(self, choice: int, tokens: int) -> None:
        """So many output tokens of one of the answers have come by now."""
        self.by_choice[choice] = tokens
        self.arrivals.append((time.time(), sum(self.by_choice.values())))

    def received(self, at: float) -> int:
        """Output tokens that had arrived at that time."""
        past = bisect_right(self.arrivals, at, key=lambda arrival: arrival[0])
        return self.arrivals[past - 1][1] if past else 0

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
        return self.n * self.prompt_tokens + received if received and self.alive(at) else 0


@dataclass(slots=True)
class Client:
    """Sends completions of known lengths to vLLM and remembers every arrival."""

    url: str
    model: str
    http: httpx.AsyncClient
    streams: list[Stream] = field(default_factory=list)

    async def complete(self, prompt: Sequence[int], output_tokens: int) -> Stream:
        """One streamed completion of exactly `output_tokens` tokens."""
        return await self.send(Request(prompt=prompt, output_tokens=output_tokens))

    async def send(self, request: Request) -> Stream:
        """Stream the completion until it ends or the client hangs up."""
        stream = Stream(len(request.prompt), request.output_tokens, time.time(), request.n)
        self.streams.append(stream)
        try:
            async with asyncio.timeout(request.hang_up_seconds):
                await self._receive(stream, request)
        except TimeoutError:
            stream.hung_up = True
        finally:
            stream.ended_at = time.time()
        return stream

    async def _receive(self, stream: Stream, request: Request) -> None:
        body = {
            "model": self.model,
            "prompt": list(request.prompt),
            "max_tokens": request.output_tokens,
            "n": request.n,
            "ignore_eos": True,
            "temperature": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        async with self.http.stream("POST", f"{self.url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            # By "\n" alone: aiter_lines also cuts at U+0085 and U+2028, which random tokens make.
            rest = b""
            async for chunk in answer.aiter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    _note(stream, line)
                if sum(stream.by_choice.values()) >= (request.hang_up_tokens or float("inf")):
                    stream.hung_up = True
                    return

    async def keep_busy(
        self,
        draw: Callable[[random.Random], Request],
        *,
        workers: int,
        seed: int,
        until: Callable[[], bool],
    ) -> None:
        """Each worker sends one request after another, and tries again where nobody listens."""
        lengths = random.Random(seed)  # noqa: S311  # a load that is the same each time

        async def worker() -> None:
            while not until():
                try:
                    await self.send(draw(lengths))
                except httpx.HTTPError:
                    await asyncio.sleep(0.5)

        await asyncio.gather(*(worker() for _ in range(workers)))

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
            s.n * s.prompt_tokens + s.received(end)
            for s in self.streams
            if s.received(end) and (s.ended_at is None or s.ended_at > start)
        )
        return low, high


def _note(stream: Stream, line: bytes) -> None:
    data = line.removeprefix(b"data: ").strip()
    if not data or data == b"[DONE]":
        return
    chunk = json.loads(data)
    for choice in chunk.get("choices", ()):
        stream.note(choice["index"], int(chunk["usage"]["completion_tokens"]))
