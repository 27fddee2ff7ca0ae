"""One table of settings; flags, environment and file are three ways to write the same thing."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_capacity.errors import Fault, SettingsError
from vllm_capacity.predict import VllmVersion, gpu_given
from vllm_capacity.secrecy import HIDDEN
from vllm_capacity.setting_values import (
    duration_seconds,
    listen_address,
    one_of,
    path,
    process_ids,
    several_texts,
    size_bytes,
    switch,
    text,
)
from vllm_capacity.target_settings import TargetSettings, read_targets

ENVIRONMENT_PREFIX = "VLLM_CAPACITY_"
DEFAULT_PORT = 8935


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
        text,
        "vLLM server to watch, as in http://localhost:8000; may be repeated",
        several=True,
        metavar="URL",
    ),
    Setting(
        "model-config",
        None,
        text,
        (
            "the model's config.json, its folder, or its name in the local hub "
            "cache; default: the root that /v1/models names, if readable"
        ),
        metavar="PATH",
    ),
    Setting(
        "vllm-args",
        None,
        text,
        (
            "vLLM's own command line, pasted: what /metrics does not tell "
            "(--tensor-parallel-size, --max-num-seqs, …)"
        ),
        metavar="'…'",
    ),
    Setting(
        "gpu",
        None,
        gpu_given,
        (
            "GPU that vLLM runs on: a name, as in 'H100 80GB', or its memory in "
            "bytes; default: what NVML says"
        ),
        metavar="NAME",
    ),
    Setting(
        "vllm-version",
        None,
        VllmVersion.parse,
        "vLLM's version, where /version does not say",
        metavar="X.Y.Z",
    ),
    Setting(
        "vllm-log",
        None,
        text,
        (
            "vLLM's start-up log, followed as it grows and is rotated: what it measured "
            "replaces what would be estimated, and its arguments need not be given"
        ),
        metavar="PATH",
    ),
    Setting(
        "engine-pid",
        None,
        process_ids,
        (
            "process of vLLM, or several separated by commas, where its GPU memory is not "
            "attributed by itself: as this machine or as nvidia-smi counts them"
        ),
        metavar="PID",
    ),
    Setting(
        "gpu-devices",
        None,
        several_texts,
        (
            "GPUs that vLLM runs on, separated by commas: indices as in nvidia-smi, GPU-… or "
            "MIG-… UUIDs; default: as its processes and their environment tell"
        ),
        metavar="DEVICES",
    ),
    Setting(
        "exclusive-gpus",
        False,
        switch,
        "nothing but this vLLM uses its GPUs: all their memory in use is its own",
        metavar="",
    ),
    Setting(
        "simulate", False, switch, "start the embedded simulated engine and watch it", metavar=""
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
        text,
        "file with the token to send to vLLM; read again for every request",
        metavar="PATH",
    ),
    Setting(
        "ca-file",
        None,
        text,
        (
            "certificate authorities to trust for https targets, or the target's own "
            "certificate; like the next two read again when it changes"
        ),
        metavar="PATH",
    ),
    Setting(
        "client-cert-file",
        None,
        text,
        "certificate to show to https targets that want one",
        metavar="PATH",
    ),
    Setting(
        "client-key-file",
        None,
        text,
        "its key; default: it stands in the certificate's file",
        metavar="PATH",
    ),
    Setting(
        "tls-server-name",
        None,
        text,
        "name that the certificate of https targets must have; default: the host in the URL",
        metavar="NAME",
    ),
    Setting(
        "nvml", True, switch, "read GPU memory through NVML where a driver is present", metavar=""
    ),
    Setting(
        "path.procfs",
        "/proc",
        path,
        "where /proc is mounted, to find vLLM's processes; the host's, if it is mounted elsewhere",
        metavar="PATH",
    ),
    Setting(
        "web.listen-address",
        (f":{DEFAULT_PORT}",),
        listen_address,
        "address to serve on; may be repeated",
        several=True,
        metavar="HOST:PORT",
    ),
    Setting(
        "web.config.file",
        None,
        text,
        (
            "TLS, client certificates, passwords and headers of what is served, in the form of "
            "the Prometheus exporter-toolkit; read again when it changes"
        ),
        metavar="PATH",
    ),
    Setting("web.telemetry-path", "/metrics", path, "path of the metrics page", metavar="PATH"),
    Setting(
        "log.level",
        "info",
        one_of("debug", "info", "warning", "error"),
        "least level that is logged",
        metavar="LEVEL",
    ),
    Setting(
        "log.format",
        "console",
        one_of("console", "json"),
        "how log lines are written",
        metavar="FORMAT",
    ),
)


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
    path_procfs: str
    web_listen_address: tuple[str, ...]
    web_config_file: str | None
    web_telemetry_path: str
    log_level: str
    log_format: str


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
        raise SettingsError(path, [Fault("config.file", path, _yaml_problem(error))]) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(path, [Fault("config.file", path, "must be a mapping of settings")])
    return content


def _yaml_problem(error: Exception) -> str:
    """What is wrong and where, without the line itself, which may hold a secret."""
    problem = " ".join(str(getattr(error, "problem", None) or "cannot be read").split())
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
    return f"is not YAML: {problem}{place}"


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
    targets = read_targets(values, file.get("targets", ()), engine_words, faults)
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
        path_procfs=values["path.procfs"],
        web_listen_address=values["web.listen-address"],
        web_config_file=values["web.config.file"],
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
        Fault(name, HIDDEN, "is no setting; see vllm-capacity serve --help")
        for name in environment
        if name.startswith(ENVIRONMENT_PREFIX)
        and name not in known
        and not _KUBERNETES.fullmatch(name)
    ]


def _unknown_keys(file: Mapping[str, Any]) -> list[Fault]:
    known = {setting.name for setting in SETTINGS} | {"targets"}
    return [
        Fault(name, HIDDEN, "is no setting; see vllm-capacity serve --help")
        for name in file
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
