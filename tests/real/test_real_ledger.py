"""The ledger beside a real vLLM whose clients hang up, share prefixes, crowd and lose the server.

What it says is compared with the blocks that vLLM uses and with what the client knows.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import mean, median
from typing import TYPE_CHECKING

import httpx
import pytest
from harness import Server, free_port
from known_load import Client, after, near
from ledger_loads import LOADS, PREFIX, Load
from real_vllm import TinyGemma3, TinyLlama, vllm_server
from watched_ledger import LedgerWatch, Look, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.real

BLOCK_SIZE = 32
FLAGS = {"block_size": BLOCK_SIZE, "max_model_len": 2048, "max_num_seqs": 16}
# Prompts of more than 512 tokens are computed in several steps.
LLAMA_FLAGS = FLAGS | {"num_gpu_blocks_override": 350, "max_num_batched_tokens": 512}
GEMMA_FLAGS = FLAGS | {"num_gpu_blocks_override": 500}


@dataclass(slots=True)
class Engine:
    """A genuine vLLM that can be killed and comes back at the same address."""

    model: TinyLlama
    flags: dict[str, int]
    folder: Path
    servers: ExitStack
    port: int = field(default_factory=free_port)
    lives: list[Server] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [w for k, v in self.flags.items() for w in (f"--{k.replace('_', '-')}", str(v))]
        name = f"vllm-{len(self.lives)}"
        model = self.model.write(self.folder)
        server = vllm_server(model, self.folder, *words, name=name, port=self.port)
        self.lives.append(self.servers.enter_context(server))

    def kill(self) -> None:
        self.lives[-1].kill()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """A Llama, and a Gemma with sliding windows; they start side by side.

    Smaller ones would make tokens faster than their API server can send them and be scraped.
    """
    with ExitStack() as servers, ThreadPoolExecutor() as pool:
        llama = Engine(
            TinyLlama(layers=12, hidden=768, heads=12),
            LLAMA_FLAGS,
            tmp_path_factory.mktemp("llama"),
            servers,
        )
        gemma = Engine(TinyGemma3(), GEMMA_FLAGS, tmp_path_factory.mktemp("gemma"), servers)
        list(pool.map(Engine.start, (llama, gemma)))
        yield {"llama": llama, "gemma": gemma}


@pytest.fixture(scope="module")
def run_of(engines: dict[str, Engine], artefacts: Path) -> Callable[[str], Run]:
    """Runs a load when it is first asked for."""
    runs: dict[str, Run] = {}

    def run_of(name: str) -> Run:
        if name not in runs:
            engine = engines["gemma" if name == "sliding-window" else "llama"]
            runs[name] = asyncio.run(_run(name, engine))
            runs[name].write(artefacts / f"ledger-{name}.jsonl")
        return runs[name]

    return run_of


async def _run(name: str, engine: Engine) -> Run:
    watch = LedgerWatch(engine.url, engine.model.config(), engine.flags)
    async with asyncio.timeout(300), httpx.AsyncClient(timeout=120) as http:
        if LOADS[name].warm_up is not None:
            before = Run(Client(engine.url, str(engine.folder), http))
            await watch.follow(before, _of(LOADS[name].warm_up, before))
        run = Run(Client(engine.url, str(engine.folder), http))
        traffic = _through_a_restart if name == "restart" else _throughout
        await watch.follow(run, traffic(name, engine, run))
    return run


async def _throughout(name: str, _: Engine, run: Run) -> None:
    await _of(LOADS[name], run)


async def _of(load: Load | None, run: Run) -> None:
    if load is not None:
        until = after(load.seconds)
        await run.client.keep_busy(load.draw, workers=load.workers, seed=load.seed, until=until)


async def _through_a_restart(name: str, engine: Engine, run: Run) -> None:
    """Kill the server amid its work; the clients try again until the next one answers."""
    load, ended = LOADS[name], asyncio.Event()
    busy = asyncio.create_task(
        run.client.keep_busy(load.draw, workers=load.workers, seed=load.seed, until=ended.is_set)
    )
    await asyncio.sleep(load.seconds / 2)
    await asyncio.to_thread(engine.kill)
    await asyncio.to_thread(engine.start)
    await asyncio.sleep(load.seconds / 2)
    ended.set()
    await busy


# ---- what holds under every load ----


every_load = pytest.mark.parametrize("name", LOADS)


@every_load
def test_the_predicted_blocks_follow_the_used_ones(run_of: Callable[[str], Run], name: str) -> None:
    run, load = run_of(name), LOADS[name]
    assert len(run.busy) >= load.seconds, "too few scrapes to mean anything"
    assert run.median_error_ratio <= load.median_ratio
    assert run.p95_error_ratio <= load.p95_ratio


@every_load
def test_the_interval_is_narrow_and_rarely_misses_the_used_blocks(
    run_of: Callable[[str], Run], name: str
) -> None:
    assert run_of(name).mean_width_ratio <= LOADS[name].width_ratio
    assert mean(look.is_inside for look in run_of(name).busy) >= LOADS[name].held_ratio


def test_the_interval_holds_the_used_blocks_in_75_of_100_scrapes(
    run_of: Callable[[str], Run],
) -> None:
    looks = [look for name in LOADS for look in run_of(name).busy]
    assert len(looks) >= 100
    assert mean(look.is_inside for look in looks) >= 0.75


@every_load
def test_after_the_last_request_the_ledger_is_within_one_block(
    run_of: Callable[[str], Run], name: str
) -> None:
    last = run_of(name).looks[-1].said
    assert last["used_blocks"] == 0
    assert last["predicted_used_blocks"] <= 1
    assert last["in_flight_tokens"] <= BLOCK_SIZE


@every_load
def test_the_prediction_is_not_the_observation_handed_back(
    run_of: Callable[[str], Run], name: str
) -> None:
    errors = [look.said["prediction_error_blocks"] for look in run_of(name).busy]
    assert sum(1 for error in errors if error) > len(errors) / 2


@every_load
def test_the_tokens_in_flight_are_those_of_the_client(
    run_of: Callable[[str], Run], name: str
) -> None:
    run, load = run_of(name), LOADS[name]
    astray = [tokens_astray(run, look) for look in run.busy]
    pool_tokens = run.busy[0].said["total_blocks"] * BLOCK_SIZE
    assert median(astray) <= load.in_flight_ratio * pool_tokens


def tokens_astray(run: Run, look: Look) -> float:
    """How far the ledger's tokens are from any that the client had around that moment."""
    said = look.said["in_flight_tokens"]
    if said is None:
        return float("inf")
    known = [run.client.tokens_between(start, end) for start, end in near(look.at)]
    # A step delivers one token to each request.
    return min(max(low - said, said - high - look.said["running"], 0) for low, high in known)


@every_load
def test_who_did_not_hang_up_got_what_was_asked_for(
    run_of: Callable[[str], Run], name: str
) -> None:
    streams = [s for s in run_of(name).client.streams if not s.hung_up]
    complete = [s for s in streams if sum(s.by_choice.values()) == s.n * s.output_tokens]
    assert len(complete) >= 10
    assert len(complete) == len(streams) or name == "restart"


# ---- what each load is about ----


def test_clients_hung_up_before_and_after_the_first_token(run_of: Callable[[str], Run]) -> None:
    run = run_of("aborts")
    hung_up = [stream for stream in run.client.streams if stream.hung_up]
    after_first = [stream for stream in hung_up if stream.by_choice]
    assert len(hung_up) - len(after_first) >= 3
    left_over = sum(s.prompt_tokens + sum(s.by_choice.values()) for s in after_first)
    allowed = LOADS["aborts"].median_ratio * run.busy[0].said["total_blocks"]
    assert left_over / BLOCK_SIZE > allowed, "a ledger that forgets them would hardly be wrong"


def test_a_shared_prefix_is_held_once(run_of: Callable[[str], Run]) -> None:
    run = run_of("prefix")
    fullest = max(run.busy, key=lambda look: look.said["in_flight_tokens"])
    unshared = fullest.said["in_flight_tokens"] / BLOCK_SIZE
    prefix = len(PREFIX) / BLOCK_SIZE
    assert fullest.said["predicted_used_blocks"] < unshared - 4 * prefix


def test_four_answers_share_one_prompt(run_of: Callable[[str], Run]) -> None:
    run = run_of("parallel")
    assert {stream.n for stream in run.client.streams} == {4}
    fullest = max(run.busy, key=lambda look: look.said["in_flight_tokens"])
    assert fullest.said["running"] >= 8
    assert fullest.said["predicted_used_blocks"] < 0.8 * (
        fullest.said["in_flight_tokens"] / BLOCK_SIZE
    )


def test_under_preemption_the_oldest_requests_of_the_client_hold_the_blocks(
    run_of: Callable[[str], Run],
) -> None:
    run = run_of("preemption")
    assert run.preempted_times >= 3
    short = [
        look
        for look in run.busy
        if look.said["waiting"] and look.said["in_flight_tokens"] > pool_tokens(look)
    ]
    assert short, "everyone fitted"
    errors = [
        abs(look.said["predicted_used_blocks"] - blocks_of_the_oldest(run, look)) for look in short
    ]
    assert median(errors) <= 0.05 * short[0].said["total_blocks"]


def pool_tokens(look: Look) -> float:
    return float(look.said["total_blocks"] * BLOCK_SIZE)


def blocks_of_the_oldest(run: Run, look: Look) -> int:
    """Blocks of as many of the client's requests as run, first come first."""
    alive = [stream for stream in run.client.streams if stream.tokens(look.at)]
    oldest = sorted(alive, key=lambda stream: stream.sent_at)[: look.said["running"]]
    return sum(stream.blocks(look.at, BLOCK_SIZE) for stream in oldest)


def test_what_fell_out_of_the_windows_is_not_counted(run_of: Callable[[str], Run]) -> None:
    run = run_of("sliding-window")
    fullest = max(run.busy, key=lambda look: look.said["in_flight_tokens"])
    # Six groups of two layers each: without windows each would hold every token.
    as_full_attention = 6 * fullest.said["in_flight_tokens"] / BLOCK_SIZE
    assert fullest.said["predicted_used_blocks"] < 0.9 * as_full_attention


def test_a_restarted_server_is_noticed_and_followed_from_its_first_page(
    run_of: Callable[[str], Run],
) -> None:
    run = run_of("restart")
    gap = [k for k, look in enumerate(run.looks) if not look.said]
    assert gap, "no scrape failed"
    before, later = run.looks[: gap[0]], run.looks[gap[-1] + 1 :]
    assert before[-1].said["running"] > 0
    assert {look.restarts for look in before} == {0}
    assert {look.restarts for look in later} == {1}
    assert max(look.error_ratio for look in later) <= 0.10
