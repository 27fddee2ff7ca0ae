"""One table of settings; flags, environment and file are three ways to write the same thing."""

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_capacity.errors import EngineArgsError, Fault, SettingsError
from vllm_capacity.predict import EngineArgs

ENVIRONMENT_PREFIX = "VLLM_CAPACITY_"
DEFAULT_PORT = 8935
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|KB|MB|GB)?", re.IGNORECASE)
_BYTES = {
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}


def duration_seconds(text: Any) -> float:
    """A duration as in ``5s``, ``500ms``, ``2m`` or a number of seconds.

    >>> duration_seconds("500ms")
    0.5

    Raises:
        ValueError: it is none, or not positive.
    """
    match = _DURATION.fullmatch(str(text).strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not match or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError("must be a positive duration such as 5s, 500ms or 2m")
    return seconds


def size_bytes(text: Any) -> int:
    """A size as in ``8MiB`` or a number of bytes.

    Raises:
        ValueError: it is none, or not positive.
    """
    match = _SIZE.fullmatch(str(text).strip())
    size = int(float(match[1]) * _BYTES[(match[2] or "B").lower()]) if match else 0
    if size <= 0:
        raise ValueError("must be a positive size such as 8MiB or 8388608")
    return size


def _text(value: Any) -> str:
    text = str(value).strip()
    if not text:
        raise ValueError("must not be empty")
    return text


def _switch(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in {"true", "yes", "1", "on"}:
        return True
    if text in {"false", "no", "0", "off"}:
        return False
    raise ValueError("must be true or false")


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        text = str(value).strip().lower()
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def _listen_address(value: Any) -> str:
    host, separator, port = str(value).strip().rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be host:port, [ipv6]:port or :port")
    return f"{host}:{port}"


def _path(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/"):
        raise ValueError("must start with /")
    return text


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set.

    Attributes:
        name: flag without its dashes, and key in the file.
        default: value if nobody sets it.
        parse: reads a written value; raises ValueError with what it must be.
        help: what it does, for ``--help`` and the documentation.
        several: whether it may be given more than once.
        metavar: how ``--help`` shows its value; empty for a switch.
    """

    name: str
    default: Any
    parse: Callable[[Any], Any]
    help: str
    several: bool = False
    metavar: str = "TEXT"

    @property
    def attribute(self) -> str:
        """Name of the field that holds it."""
        return re.sub(r"[.-]", "_", self.name)

    @property
    def variable(self) -> str:
        """Environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.attribute.upper()


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "target",
        (),
        _text,
        "vLLM server to watch, as in http://localhost:8000; may be repeated",
        several=True,
        metavar="URL",
    ),
    Setting(
        "model-config",
        None,
        _text,
        (
            "the model's config.json, its folder, or its name in the local hub "
            "cache; default: the root that /v1/models names, if readable"
        ),
        metavar="PATH",
    ),
    Setting(
        "vllm-args",
        None,
        _text,
        (
            "vLLM's own command line, pasted: what /metrics does not tell "
            "(--tensor-parallel-size, --max-num-seqs, …)"
        ),
        metavar="'…'",
    ),
    Setting(
        "gpu",
        None,
        _text,
        (
            "GPU that vLLM runs on: a name, as in 'H100 80GB', or its memory in "
            "bytes; default: what NVML says"
        ),
        metavar="NAME",
    ),
    Setting(
        "vllm-version", None, _text, "vLLM's version, where /version does not say", metavar="X.Y.Z"
    ),
    Setting(
        "simulate", False, _switch, "start the embedded simulated engine and watch it", metavar=""
    ),
    Setting(
        "scrape-interval",
        5.0,
        duration_seconds,
        "time between two collections from a target",
        metavar="DURATION",
    ),
    Setting(
        "scrape-timeout",
        10.0,
        duration_seconds,
        "longest that one collection may take, in all; a busy vLLM can take seconds",
        metavar="DURATION",
    ),
    Setting(
        "expiry",
        None,
        duration_seconds,
        (
            "age at which the last values of a silent target are withdrawn; "
            "default: three intervals, at least 30s"
        ),
        metavar="DURATION",
    ),
    Setting("max-page-size", 8 << 20, size_bytes, "largest metrics page accepted", metavar="SIZE"),
    Setting(
        "bearer-token-file",
        None,
        _text,
        "file with the token to send to vLLM; read again for every request",
        metavar="PATH",
    ),
    Setting(
        "ca-file", None, _text, "certificate authorities to trust for https targets", metavar="PATH"
    ),
    Setting(
        "nvml", True, _switch, "read GPU memory through NVML where a driver is present", metavar=""
    ),
    Setting(
        "web.listen-address",
        (f":{DEFAULT_PORT}",),
        _listen_address,
        "address to serve on; may be repeated",
        several=True,
        metavar="HOST:PORT",
    ),
    Setting("web.telemetry-path", "/metrics", _path, "path of the metrics page", metavar="PATH"),
    Setting(
        "log.level",
        "info",
        _one_of("debug", "info", "warning", "error"),
        "least level that is logged",
        metavar="LEVEL",
    ),
    Setting(
        "log.format",
        "console",
        _one_of("console", "json"),
        "how log lines are written",
        metavar="FORMAT",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSettings:
    """One vLLM server to watch, and what is known of it beforehand.

    Attributes:
        url: where it answers.
        name: value of the ``target`` label; None: host and port.
        model_config: where its config.json is; None: where /v1/models points.
        engine_args: what was given on flags or in the file.
        gpu: name or bytes; None: NVML's.
        vllm_version: None: what /version says.
        bearer_token_file: file with its token.
    """

    url: str
    name: str | None = None
    model_config: str | None = None
    engine_args: EngineArgs = field(default_factory=lambda: EngineArgs.from_mapping({}))
    gpu: str | None = None
    vllm_version: str | None = None
    bearer_token_file: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Every setting, read and checked. Fields are those of ``SETTINGS``."""

    targets: tuple[TargetSettings, ...]
    simulate: bool
    scrape_interval: float
    scrape_timeout: float
    expiry: float
    max_page_size: int
    ca_file: str | None
    nvml: bool
    web_listen_address: tuple[str, ...]
    web_telemetry_path: str
    log_level: str
    log_format: str


_PER_TARGET = ("model-config", "vllm-args", "gpu", "vllm-version", "bearer-token-file")
_TARGET_KEYS = ("url", "name", "engine-args", *_PER_TARGET)


def read_settings_file(path: str) -> Mapping[str, Any]:
    """The mapping in a YAML settings file.

    Raises:
        SettingsError: it cannot be read, or is no mapping of settings.
    """
    import yaml  # noqa: PLC0415 (only with a file)

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            path, [Fault("config.file", path, f"cannot be read: {error}")]
        ) from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise SettingsError(path, [Fault("config.file", path, f"is not YAML: {problem}")]) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(path, [Fault("config.file", path, "must be a mapping of settings")])
    return content


def resolve_settings(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Mapping[str, Any],
    *,
    engine_words: Sequence[str] = (),
    needs_target: bool = True,
) -> Settings:
    """All settings: flags before environment before file before default.

    Args:
        flags: by setting name; what was not given is absent or None.
        environment: of the process; read for ``VLLM_CAPACITY_…``.
        file: as ``read_settings_file`` gives it.
        engine_words: vLLM's own flags given on our command line.
        needs_target: whether a target (or ``simulate``) must be named.

    Raises:
        SettingsError: with every fault of all three.
    """
    faults = [*_unknown_variables(environment), *_unknown_keys(file)]
    values = {
        setting.name: _value(setting, flags, environment, file, faults) for setting in SETTINGS
    }
    targets = _targets(values, file.get("targets", ()), engine_words, faults)
    if needs_target and not targets and not values["simulate"]:
        problem = "name a vLLM server with --target URL, or use --simulate"
        faults.append(Fault("target", None, problem))
    if faults:
        raise SettingsError("settings", faults)
    interval = values["scrape-interval"]
    return Settings(
        targets=targets,
        simulate=values["simulate"],
        scrape_interval=interval,
        scrape_timeout=values["scrape-timeout"],
        expiry=values["expiry"] or max(3 * interval, 30.0),
        max_page_size=values["max-page-size"],
        ca_file=values["ca-file"],
        nvml=values["nvml"],
        web_listen_address=values["web.listen-address"],
        web_telemetry_path=values["web.telemetry-path"],
        log_level=values["log.level"],
        log_format=values["log.format"],
    )


# A Kubernetes Service named vllm-capacity puts its address into every container's environment.
_KUBERNETES = re.compile(
    rf"{ENVIRONMENT_PREFIX}(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP)(_\w+)?)"
)


def _unknown_variables(environment: Mapping[str, str]) -> list[Fault]:
    known = {setting.variable for setting in SETTINGS} | {ENVIRONMENT_PREFIX + "CONFIG_FILE"}
    return [
        Fault(name, value, "is no setting; see vllm-capacity serve --help")
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in known
        and not _KUBERNETES.fullmatch(name)
    ]


def _unknown_keys(file: Mapping[str, Any]) -> list[Fault]:
    known = {setting.name for setting in SETTINGS} | {"targets"}
    return [
        Fault(name, value, "is no setting; see vllm-capacity serve --help")
        for name, value in file.items()
        if name not in known
    ]


def _value(
    setting: Setting,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Mapping[str, Any],
    faults: list[Fault],
) -> Any:
    for key, written in (
        (f"--{setting.name}", flags.get(setting.name)),
        (setting.variable, environment.get(setting.variable)),
        (setting.name, file.get(setting.name)),
    ):
        if written is not None:
            return _parsed(setting, key, written, faults)
    return setting.default


def _parsed(setting: Setting, key: str, written: Any, faults: list[Fault]) -> Any:
    parts = _parts(written) if setting.several else [written]
    values = []
    for part in parts:
        try:
            values.append(setting.parse(part))
        except ValueError as error:
            faults.append(Fault(key, part, str(error)))
    if setting.several:
        return tuple(values)
    return values[0] if values else setting.default


def _parts(written: Any) -> list[Any]:
    """Repeated flags and YAML lists are lists; an environment variable separates by commas."""
    if isinstance(written, str):
        return [part for part in (piece.strip() for piece in written.split(",")) if part]
    return list(written) if isinstance(written, list | tuple) else [written]


def _targets(
    values: Mapping[str, Any], entries: Any, engine_words: Sequence[str], faults: list[Fault]
) -> tuple[TargetSettings, ...]:
    common = {name: values[name] for name in _PER_TARGET}
    flags = _read(lambda: EngineArgs.from_command_line(engine_words), "flags", faults)
    pasted = _pasted(values["vllm-args"], faults)
    described: list[tuple[str, Any]] = [
        (f"target[{i}]", {"url": url}) for i, url in enumerate(values["target"])
    ]
    if not isinstance(entries, list | tuple):
        faults.append(Fault("targets", entries, "must be a list of mappings with a url"))
        entries = ()
    described += [(f"targets[{i}]", entry) for i, entry in enumerate(entries)]
    targets = []
    for where, entry in described:
        if not isinstance(entry, dict) or not isinstance(entry.get("url"), str):
            faults.append(Fault(where, entry, "must be a mapping with a url"))
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
        Fault(f"{where}.{key}", value, f"is not one of {', '.join(_TARGET_KEYS)}")
        for key, value in entry.items()
        if key not in _TARGET_KEYS
    ]
    merged = {**common, **{k: str(v) for k, v in entry.items() if k in _PER_TARGET}}
    name = entry.get("name")
    return TargetSettings(
        url=entry["url"],
        name=None if name is None else str(name),
        model_config=merged["model-config"],
        engine_args=engine_args,
        gpu=merged["gpu"],
        vllm_version=merged["vllm-version"],
        bearer_token_file=merged["bearer-token-file"],
    )


def _own_args(
    where: str, entry: Mapping[str, Any], pasted: EngineArgs, faults: list[Fault]
) -> EngineArgs:
    """A target's own mapping before the command line pasted for it, or else for all."""
    if "vllm-args" in entry:
        pasted = _pasted(str(entry["vllm-args"]), faults)
    mapping = entry.get("engine-args") or {}
    if not isinstance(mapping, dict):
        faults.append(Fault(f"{where}.engine-args", mapping, "must be a mapping"))
        return pasted
    own = _read(lambda: EngineArgs.from_mapping(mapping), f"{where}.engine-args", faults)
    return own.merged_over(pasted)


def _pasted(text: str | None, faults: list[Fault]) -> EngineArgs:
    try:
        words = shlex.split(text) if text else []
    except ValueError as error:
        faults.append(Fault("vllm-args", text, f"cannot be split into words: {error}"))
        words = []
    return _read(lambda: EngineArgs.from_command_line(words), "vllm-args", faults)


def _read(read: Callable[[], EngineArgs], where: str, faults: list[Fault]) -> EngineArgs:
    try:
        return read()
    except EngineArgsError as error:
        faults += [Fault(f"{where}: {f.key}", f.value, f.problem) for f in error.faults]
        return EngineArgs.from_mapping({})
