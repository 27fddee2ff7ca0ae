"""Flags that describe a deployment, shared by the commands: vLLM's own names where vLLM has one."""

import argparse
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vllm_capacity.deployment import DeploymentFacts, served_version
from vllm_capacity.errors import EngineArgsError, Fault, SourceError
from vllm_capacity.predict import EngineArgs, VllmVersion, gpu_given
from vllm_capacity.predict.engine_flags import ENGINE_FLAGS
from vllm_capacity.sources.model_files import ModelFiles, read_model_config

if TYPE_CHECKING:
    from vllm_capacity.sources.vllm_http import ServedModel

T = TypeVar("T")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add vLLM's own flags, as far as they move memory."""
    group = parser.add_argument_group("vLLM's own arguments, as the engine was started with")
    for flag in ENGINE_FLAGS:
        name = f"--{flag.name.replace('_', '-')}"
        if flag.type is bool:
            group.add_argument(
                name,
                dest=_destination(flag.name),
                action=argparse.BooleanOptionalAction,
                default=None,
                help=flag.help,
            )
        else:
            group.add_argument(name, dest=_destination(flag.name), metavar="N", help=flag.help)


def engine_words(args: argparse.Namespace) -> list[str]:
    """The vLLM flags that were given, as words of a vLLM command line."""
    words = []
    for flag in ENGINE_FLAGS:
        value = getattr(args, _destination(flag.name), None)
        dashed = flag.name.replace("_", "-")
        if value is True or value is False:
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        elif value is not None:
            words.append(f"--{dashed}={value}")
    return words


def add_deployment_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that describes one deployment."""
    group = parser.add_argument_group("the deployment")
    group.add_argument(
        "--model-config",
        metavar="PATH",
        help="the model's config.json, its folder, or its name in the local hub cache",
    )
    group.add_argument("--gpu", metavar="NAME", help="the GPU: a name, or its memory in bytes")
    group.add_argument("--vllm-version", metavar="X.Y.Z", help="vLLM's version")
    group.add_argument("--vllm-args", metavar="'…'", help="vLLM's own command line, pasted")
    add_engine_flags(parser)


def deployment_facts(
    args: argparse.Namespace, *, served: "ServedModel | None" = None, version: str | None = None
) -> DeploymentFacts:
    """What the flags say of a deployment, and where they are silent the server.

    Raises:
        EngineArgsError: the arguments cannot be used.
        SourceError: a config.json that was asked for cannot be read.
    """
    files = _model_files(args.model_config, None if served is None else served.root)
    return DeploymentFacts(
        config=None if files is None else files.config,
        hf_quant_config=None if files is None else files.hf_quant_config,
        config_source="config.json" if files is None else files.path,
        checkpoint_bytes=None if files is None else files.checkpoint_bytes,
        given_args=_given_args(args),
        max_model_len=None if served is None else served.max_model_len,
        vllm_version=_read("vllm-version", args.vllm_version, VllmVersion.parse)
        or served_version(version),
        gpu=_read("gpu", args.gpu, gpu_given),
    )


def _read(flag: str, text: str | None, reader: Callable[[str], T]) -> T | None:
    if text is None:
        return None
    try:
        return reader(text)
    except ValueError as error:
        raise EngineArgsError("flags", [Fault(flag, text, str(error))]) from None


def _given_args(args: argparse.Namespace) -> EngineArgs:
    try:
        pasted = shlex.split(args.vllm_args or "")
    except ValueError as error:
        problem = f"cannot be split into words: {error}"
        raise EngineArgsError("flags", [Fault("vllm-args", args.vllm_args, problem)]) from None
    flags = EngineArgs.from_command_line(engine_words(args))
    return flags.merged_over(EngineArgs.from_command_line(pasted))


def _model_files(asked: str | None, root: str | None) -> ModelFiles | None:
    """The config.json asked for; else the one that the server names, if it is readable here."""
    if asked is not None:
        return read_model_config(asked)
    if root is None:
        return None
    try:
        return read_model_config(root)
    except SourceError:
        return None


def _destination(name: str) -> str:
    return f"engine_{name}"
