"""The servers to watch, and what is known of each beforehand."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_capacity.errors import EngineArgsError, Fault
from vllm_capacity.predict import EngineArgs, Gpu, VllmVersion, gpu_given
from vllm_capacity.secrecy import HIDDEN
from vllm_capacity.setting_values import process_ids, several_texts, switch

_PER_TARGET = (
    *("model-config", "vllm-args", "gpu", "vllm-version", "vllm-log", "bearer-token-file"),
    *("engine-pid", "gpu-devices", "exclusive-gpus"),
    *("ca-file", "client-cert-file", "client-key-file", "tls-server-name"),
)
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "gpu": gpu_given,
    "vllm-version": VllmVersion.parse,
    "engine-pid": process_ids,
    "gpu-devices": several_texts,
    "exclusive-gpus": switch,
}
_LISTS = ("engine-pid", "gpu-devices")
_TARGET_KEYS = ("url", "name", "engine-args", *_PER_TARGET)


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSettings:
    """One vLLM server to watch, and what is known of it beforehand.

    Attributes:
        url: where it answers.
        name: value of the ``target`` label; None: host and port.
        model_config: where its config.json is; None: where /v1/models points.
        engine_args: what was given on flags or in the file.
        gpu: None: NVML's.
        vllm_version: None: what /version says.
        vllm_log: file with its start-up log.
        engine_pids: its processes; empty: to be found.
        gpu_devices: its GPUs, by index or UUID; None: to be found.
        exclusive_gpus: whether nothing else uses them.
        bearer_token_file: file with its token.
        ca_file: authorities that its certificate is to be of; None: the system's.
        client_cert_file: certificate to show to it.
        client_key_file: the certificate's key; None: in the same file.
        tls_server_name: name in its certificate; None: the host of ``url``.
    """

    url: str
    name: str | None = None
    model_config: str | None = None
    engine_args: EngineArgs = field(default_factory=lambda: EngineArgs.from_mapping({}))
    gpu: Gpu | None = None
    vllm_version: VllmVersion | None = None
    vllm_log: str | None = None
    bearer_token_file: str | None = None
    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    tls_server_name: str | None = None
    engine_pids: tuple[int, ...] = ()
    gpu_devices: tuple[str, ...] | None = None
    exclusive_gpus: bool = False


def read_targets(
    values: Mapping[str, Any], entries: Any, engine_words: Sequence[str], faults: list[Fault]
) -> tuple[TargetSettings, ...]:
    """Every target of flags and file; what is wrong with them is added to ``faults``.

    Args:
        values: settings by name, those for all targets among them.
        entries: ``targets`` of the file.
        engine_words: vLLM's own flags given on our command line; they win over the file.
        faults: grows.
    """
    common = {name: values[name] for name in _PER_TARGET}
    flags = _read(lambda: EngineArgs.from_command_line(engine_words), "flags", faults)
    pasted = _pasted(values["vllm-args"], faults)
    described: list[tuple[str, Any]] = [
        (f"target[{i}]", {"url": url}) for i, url in enumerate(values["target"])
    ]
    if not isinstance(entries, list | tuple):
        faults.append(Fault("targets", HIDDEN, "must be a list of mappings with a url"))
        entries = ()
    described += [(f"targets[{i}]", entry) for i, entry in enumerate(entries)]
    targets = []
    for where, entry in described:
        if not isinstance(entry, dict) or not isinstance(entry.get("url"), str):
            faults.append(Fault(where, HIDDEN, "must be a mapping with a url"))
            continue
        args = flags.merged_over(_own_args(where, entry, pasted, faults))
        targets.append(_target(where, entry, common, args, faults))
    names = [target.name or target.url for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults += [Fault("target", name, "is given twice") for name in twice]
    return tuple(targets)


def _target(
    where: str,
    entry: Mapping[str, Any],
    common: Mapping[str, Any],
    engine_args: EngineArgs,
    faults: list[Fault],
) -> TargetSettings:
    faults += [
        Fault(f"{where}.{key}", HIDDEN, f"is not one of {', '.join(_TARGET_KEYS)}")
        for key in entry
        if key not in _TARGET_KEYS
    ]
    own = {
        key: _own_value(f"{where}.{key}", key, value, faults)
        for key, value in entry.items()
        if key in _PER_TARGET
    }
    merged = {**common, **own}
    if merged["client-key-file"] and not merged["client-cert-file"]:
        problem = "needs client-cert-file, the certificate that it belongs to"
        faults.append(Fault(f"{where}.client-key-file", merged["client-key-file"], problem))
    name = entry.get("name")
    return TargetSettings(
        url=entry["url"],
        name=None if name is None else str(name),
        model_config=merged["model-config"],
        engine_args=engine_args,
        gpu=merged["gpu"],
        vllm_version=merged["vllm-version"],
        vllm_log=merged["vllm-log"],
        bearer_token_file=merged["bearer-token-file"],
        ca_file=merged["ca-file"],
        client_cert_file=merged["client-cert-file"],
        client_key_file=merged["client-key-file"],
        tls_server_name=merged["tls-server-name"],
        engine_pids=merged["engine-pid"] or (),
        gpu_devices=merged["gpu-devices"],
        exclusive_gpus=merged["exclusive-gpus"],
    )


def _own_value(where: str, key: str, value: Any, faults: list[Fault]) -> Any:
    """One setting of a target's own, read as it is for all targets."""
    try:
        return _READERS.get(key, str)(value if key in _LISTS else str(value))
    except ValueError as error:
        faults.append(Fault(where, value, str(error)))
        return None


def _own_args(
    where: str, entry: Mapping[str, Any], pasted: EngineArgs, faults: list[Fault]
) -> EngineArgs:
    """A target's own mapping before the command line pasted for it, or else for all."""
    if "vllm-args" in entry:
        pasted = _pasted(str(entry["vllm-args"]), faults)
    mapping = entry.get("engine-args") or {}
    if not isinstance(mapping, dict):
        faults.append(Fault(f"{where}.engine-args", HIDDEN, "must be a mapping"))
        return pasted
    own = _read(lambda: EngineArgs.from_mapping(mapping), f"{where}.engine-args", faults)
    return own.merged_over(pasted)


def _pasted(text: str | None, faults: list[Fault]) -> EngineArgs:
    try:
        words = shlex.split(text) if text else []
    except ValueError as error:
        faults.append(Fault("vllm-args", HIDDEN, f"cannot be split into words: {error}"))
        words = []
    return _read(lambda: EngineArgs.from_command_line(words), "vllm-args", faults)


def _read(read: Callable[[], EngineArgs], where: str, faults: list[Fault]) -> EngineArgs:
    try:
        return read()
    except EngineArgsError as error:
        faults += [Fault(f"{where}: {f.key}", f.value, f.problem) for f in error.faults]
        return EngineArgs.from_mapping({})
