"""``vllm-capacity simulate``: the simulated engine by itself, until told to stop."""

import argparse
import asyncio
import logging
import signal
import sys
from dataclasses import replace
from typing import Any

from vllm_capacity.simulate import (
    LOAD_PATTERNS,
    SCENARIOS,
    Scenario,
    SimulatedServer,
    SimulationConfig,
)
from vllm_capacity.units import format_gib

_DESCRIPTION = """\
Serve the pages of a vLLM 0.32 server from a simulation: no GPU, no model, no real requests.

Inside is vLLM's way of working: a paged block pool with prefix caching, continuous batching
with chunked prefill, queueing and preemption. Its clients are simulated too. Use it to try
dashboards, alerts and this exporter:

  vllm-capacity simulate --port 8000 --load burst
  vllm-capacity serve --target http://127.0.0.1:8000
  vllm-capacity simulate --scenario smaller-pool

Pages: /metrics /v1/models /version /health. Every answer says that it is a simulation.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; those that vLLM has carry vLLM's names."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    config = SimulationConfig()
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 takes any (%(default)s)"
    )
    _add_engine_arguments(parser.add_argument_group("simulated engine, by vLLM's names"), config)
    parser.add_argument(
        "--scenario",
        metavar="NAME",
        choices=tuple(SCENARIOS),
        help="start from one of: "
        + "; ".join(f"{name} ({scenario.text})" for name, scenario in SCENARIOS.items()),
    )
    load = parser.add_argument_group("simulated clients")
    load.add_argument(
        "--load",
        metavar="PATTERN",
        choices=tuple(LOAD_PATTERNS),
        help=f"how the load moves: {', '.join(LOAD_PATTERNS)} (diurnal)",
    )
    load.add_argument("--seed", type=int, default=0, help="equal seeds, equal load (%(default)s)")
    load.add_argument(
        "--speed",
        type=float,
        default=1.0,
        help="simulated seconds that pass in a second (%(default)s)",
    )


def _add_engine_arguments(group: argparse._ArgumentGroup, config: SimulationConfig) -> None:
    for flag, default, text in (
        ("--num-gpu-blocks-override", config.num_gpu_blocks, "blocks of each engine's pool"),
        ("--block-size", config.block_size, "tokens of a block"),
        ("--max-model-len", config.max_model_len, "longest request in tokens"),
        ("--max-num-seqs", config.max_num_seqs, "most requests running at once"),
        ("--max-num-batched-tokens", config.max_num_batched_tokens, "most tokens of a step"),
        ("--data-parallel-size", config.data_parallel_size, "engines behind the one address"),
    ):
        group.add_argument(flag, type=int, metavar="N", help=f"{text} ({default})")
    group.add_argument(
        "--served-model-name",
        metavar="NAME",
        help=f"the model_name label ({config.model_name})",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns 0.

    Raises:
        InputError: flags that cannot be used, all of them at once.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    scenario = SCENARIOS[args.scenario] if args.scenario else Scenario(text="")
    given = _given(args)
    config = replace(scenario.config, **given)
    workload = replace(
        scenario.workload, seed=args.seed, pattern=args.load or scenario.workload.pattern
    )
    # The pool after a restart is the scenario's point.
    kept = {name: value for name, value in given.items() if name != "num_gpu_blocks"}
    restarts = [replace(r, config=replace(r.config, **kept)) for r in scenario.restarts]
    server = SimulatedServer(
        config, workload, restarts, host=args.host, port=args.port, speed=args.speed
    )
    asyncio.run(_serve(server, config))
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of the config that a flag sets, the scenario's stay as they are otherwise."""
    given = {
        "num_gpu_blocks": args.num_gpu_blocks_override,
        "block_size": args.block_size,
        "max_model_len": args.max_model_len,
        "max_num_seqs": args.max_num_seqs,
        "max_num_batched_tokens": args.max_num_batched_tokens,
        "model_name": args.served_model_name,
        "data_parallel_size": args.data_parallel_size,
    }
    return {name: value for name, value in given.items() if value is not None}


async def _serve(server: SimulatedServer, config: SimulationConfig) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    url = await server.start()
    try:
        sys.stdout.write(
            f"simulated vLLM (no GPU, no model) at {url}/metrics: "
            f"{config.data_parallel_size} engine(s), {config.num_gpu_blocks} blocks of "
            f"{config.block_size} tokens each, {format_gib(config.kv_cache_memory_bytes)}\n"
        )
        sys.stdout.flush()
        await stopping.wait()
    finally:
        await server.stop()
