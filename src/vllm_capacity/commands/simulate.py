"""``vllm-capacity simulate``: the simulated engine by itself, until told to stop."""

import argparse
import asyncio
import logging
import signal
import sys

from vllm_capacity.simulate import LOAD_PATTERNS, SimulatedServer, SimulationConfig, Workload
from vllm_capacity.units import Blocks, Tokens, format_gib

_DESCRIPTION = """\
Serve the pages of a vLLM 0.32 server from a simulation: no GPU, no model, no real requests.

Inside is vLLM's way of working: a paged block pool with prefix caching, continuous batching
with chunked prefill, queueing and preemption. Its clients are simulated too. Use it to try
dashboards, alerts and this exporter:

  vllm-capacity simulate --port 8000 --load burst
  vllm-capacity serve --target http://127.0.0.1:8000

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
    load = parser.add_argument_group("simulated clients")
    load.add_argument(
        "--load",
        metavar="PATTERN",
        choices=tuple(LOAD_PATTERNS),
        default="diurnal",
        help=f"how the load moves: {', '.join(LOAD_PATTERNS)} (%(default)s)",
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
        group.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{text} (%(default)s)"
        )
    group.add_argument(
        "--served-model-name",
        default=config.model_name,
        metavar="NAME",
        help="the model_name label (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns 0.

    Raises:
        InputError: flags that cannot be used, all of them at once.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = _config(args)
    workload = Workload(pattern=args.load, seed=args.seed)
    server = SimulatedServer(config, workload, host=args.host, port=args.port, speed=args.speed)
    asyncio.run(_serve(server, config))
    return 0


def _config(args: argparse.Namespace) -> SimulationConfig:
    return SimulationConfig(
        num_gpu_blocks=Blocks(args.num_gpu_blocks_override),
        block_size=Tokens(args.block_size),
        max_model_len=Tokens(args.max_model_len),
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=Tokens(args.max_num_batched_tokens),
        model_name=args.served_model_name,
        data_parallel_size=args.data_parallel_size,
    )


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
