"""``vllm-capacity simulate`` as a program."""

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from vllm_capacity.commands import simulate
from vllm_capacity.errors import InputError

_PROGRAM = """
import argparse, sys
from vllm_capacity.commands import simulate
parser = argparse.ArgumentParser(prog="vllm-capacity simulate")
simulate.add_arguments(parser)
sys.exit(simulate.run(parser.parse_args(sys.argv[1:])))
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="vllm-capacity simulate")
    simulate.add_arguments(made)
    return made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_stop_and_ends_in_order(number: signal.Signals) -> None:
    flags = ["--port", "0", "--data-parallel-size", "2", "--load", "burst", "--seed", "7"]
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *flags], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+/metrics", line)
        assert found, line
        with urllib.request.urlopen(found[0], timeout=5) as response:  # noqa: S310
            page = response.read().decode()
        process.send_signal(number)
        assert process.wait(timeout=10) == 0
    assert "simulated" in line
    assert 'vllm:num_requests_running{engine="1"' in page


def test_a_scenario_gives_what_no_flag_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(simulate, "SimulatedServer", lambda *args, **_: made.append(args))
    monkeypatch.setattr(asyncio, "run", lambda coroutine: coroutine.close())
    flags = ["--scenario", "smaller-pool", "--max-num-seqs", "9", "--served-model-name", "m"]
    assert simulate.run(parser().parse_args(flags)) == 0
    ((config, workload, (restart,)),) = made
    assert (config.max_num_seqs, config.model_name, config.num_gpu_blocks) == (9, "m", 2560)
    assert (restart.config.max_num_seqs, restart.config.num_gpu_blocks) == (9, 1280)
    assert workload.pattern == "steady"


def test_every_flag_that_cannot_be_used_is_named() -> None:
    args = parser().parse_args(["--max-num-seqs", "0", "--block-size", "-3"])
    with pytest.raises(InputError) as caught:
        simulate.run(args)
    assert "max_num_seqs: must be 1 to 65536 (got 0)" in str(caught.value)
    assert "block_size: must be 1 to 65536 (got -3)" in str(caught.value)


def test_the_help_says_that_it_is_a_simulation_and_names_every_load() -> None:
    text = parser().format_help()
    assert "no GPU, no model" in text
    for word in ("diurnal", "steady", "ramp", "burst", "--num-gpu-blocks-override"):
        assert word in text
