"""``vllm-capacity serve``: the daemon."""

import argparse
import asyncio
import os
import sys

from vllm_capacity.commands.engine_flags import add_engine_flags, engine_words
from vllm_capacity.settings import SETTINGS, Setting, read_settings_file, resolve_settings

_EPILOG = """\
examples:
  vllm-capacity serve --target http://localhost:8000
  vllm-capacity serve --target http://localhost:8000 --model-config ./model --max-num-seqs 256
  vllm-capacity serve --target http://a:8000 --target http://b:8000 --log.format json
  vllm-capacity serve --simulate

Each setting may also stand in the environment, as VLLM_CAPACITY_SCRAPE_INTERVAL=5s, or in a YAML
file given by --config.file, as scrape-interval: 5s. A flag wins over the environment, that over
the file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``serve``: every setting, and vLLM's own flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--config.file",
        dest="config.file",
        metavar="PATH",
        default=os.environ.get("VLLM_CAPACITY_CONFIG_FILE"),
        help="YAML file of settings, and of targets with settings of their own",
    )
    for setting in SETTINGS:
        _add(parser, setting)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    # httpx loads its own command line, and click and rich with it, where they are installed: 4 MB.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

    from vllm_capacity.daemon import Daemon  # noqa: PLC0415 (after faults are out of the way)
    from vllm_capacity.logs import configure_logs  # noqa: PLC0415

    flags = vars(args)
    file = read_settings_file(flags["config.file"]) if flags["config.file"] else {}
    settings = resolve_settings(flags, os.environ, file, engine_words=engine_words(args))
    configure_logs(settings.log_level, settings.log_format)
    asyncio.run(Daemon(settings, revision=os.environ.get("GIT_REVISION", "unknown")).run())
    return 0


def _add(parser: argparse.ArgumentParser, setting: Setting) -> None:
    flag = f"--{setting.name}"
    help_text = setting.help.replace("%", "%%") + _default(setting)
    if not setting.metavar:
        parser.add_argument(
            flag,
            dest=setting.name,
            action=argparse.BooleanOptionalAction,
            default=None,
            help=help_text,
        )
    elif setting.several:
        parser.add_argument(
            flag, dest=setting.name, action="append", metavar=setting.metavar, help=help_text
        )
    else:
        parser.add_argument(flag, dest=setting.name, metavar=setting.metavar, help=help_text)


def _default(setting: Setting) -> str:
    if setting.default in (None, ()) or isinstance(setting.default, bool):
        return ""
    value = ", ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
    unit = "s" if setting.metavar == "DURATION" else ""
    return f" (default: {value:g}{unit})" if isinstance(value, float) else f" (default: {value})"
