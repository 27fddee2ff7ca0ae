"""``predict``: what a deployment's memory and KV cache ought to be, without running it."""

import argparse
import json
import sys
from collections.abc import Iterator

from vllm_capacity.commands.engine_flags import add_deployment_flags, deployment_facts
from vllm_capacity.commands.predict_answers import add_workload_flags, question_of
from vllm_capacity.commands.predict_jsonl import answer_line
from vllm_capacity.commands.predict_table import fits, render
from vllm_capacity.errors import EngineArgsError, Fault, ModelConfigError
from vllm_capacity.predict import Deployment, ModelConfig
from vllm_capacity.predict.memory.calibrated_deployment import calibrated_deployment
from vllm_capacity.predict.memory.calibration import Calibration
from vllm_capacity.predict.memory.checkpoint_check import checkpoint_mismatch
from vllm_capacity.sources.profile_file import save_profile

_EPILOG = """\
exit status: 0 the deployment fits, 1 it does not or is not described exactly, 2 wrongly asked.

examples:
  vllm-capacity predict --model-config ./Qwen3-8B --gpu H100 --max-model-len 32768
  vllm-capacity predict --model-config ./Qwen3-8B --gpu H100 --mean-prompt-tokens 1500 \\
      --mean-output-tokens 400 --shared-prefix-tokens 900 --users 500
  vllm-capacity predict --model-config ./Qwen3-8B --calibrate-from vllm.log --max-num-seqs 256
  vllm-capacity predict --model-config ./config.json --gpu 85027979264 \\
      --vllm-args 'vllm serve Qwen/Qwen3-8B -tp 2 --max-num-seqs 256 --kv-cache-dtype fp8'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``predict``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add_deployment_flags(parser)
    group = parser.add_argument_group("surroundings that vLLM reads")
    group.add_argument(
        "--env",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an environment variable of the vLLM process; may be repeated",
    )
    group.add_argument(
        "--flashinfer",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether FlashInfer is installed there; default: as the release's image ships it",
    )
    add_workload_flags(parser)
    group = parser.add_argument_group("measured terms instead of estimated ones")
    group.add_argument(
        "--calibrate-from",
        metavar="FILE",
        help="a start-up log of vLLM, or a profile saved before; its arguments count too",
    )
    group.add_argument(
        "--save-profile",
        metavar="FILE",
        help="where to keep the measured terms as a profile",
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="read one JSON object a line on standard input, answer one a line",
    )


def run(args: argparse.Namespace) -> int:
    """Answer on standard output."""
    if args.jsonl:
        return _jsonl()
    deployment = _deployment(args)
    if args.save_profile is not None:
        _save_profile(args.save_profile, deployment.calibration)
    print(render(deployment, question_of(args)))
    return 0 if fits(deployment) else 1


def _jsonl() -> int:
    status = 0
    for line in _lines():
        answer = answer_line(line)
        status = 1 if "error" in answer else status
        print(json.dumps(answer, allow_nan=False), flush=True)
    return status


def _lines() -> Iterator[bytes]:
    return (line for line in sys.stdin.buffer if line.strip())


def _deployment(args: argparse.Namespace) -> Deployment:
    facts = deployment_facts(args)
    if facts.config is None:
        fault = Fault("model-config", None, "is missing; give the model's config.json or folder")
        raise ModelConfigError("flags", [fault])
    deployment = Deployment(
        model=ModelConfig.from_dict(
            facts.config, hf_quant_config=facts.hf_quant_config, source=facts.config_source
        ),
        engine_args=facts.given_args,
        gpu=facts.gpu,
        vllm_version=facts.vllm_version,
        env=_environment(args.env),
        flashinfer=args.flashinfer,
    )
    if facts.checkpoint_bytes is not None:
        mismatch = checkpoint_mismatch(deployment, facts.checkpoint_bytes)
        if mismatch is not None:
            raise ModelConfigError(facts.config_source, [Fault("", None, mismatch)])
    if args.calibrate_from is None:
        return deployment
    from vllm_capacity.commands.calibration_files import (  # noqa: PLC0415 (only with a log)
        read_calibration,
    )

    return calibrated_deployment(deployment, read_calibration(args.calibrate_from))


def _save_profile(path: str, calibration: Calibration | None) -> None:
    if calibration is None:
        fault = Fault("save-profile", path, "needs --calibrate-from: nothing was measured")
        raise EngineArgsError("flags", [fault])
    save_profile(path, calibration.to_json())


def _environment(words: list[str]) -> dict[str, str]:
    faults = [Fault("env", word, "must be KEY=VALUE") for word in words if "=" not in word]
    if faults:
        raise EngineArgsError("flags", faults)
    return dict(word.split("=", 1) for word in words)
