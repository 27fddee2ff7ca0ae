"""Flags of the settings, shared by the commands that watch."""

import argparse
import os
from collections.abc import Iterable
from typing import Any

from vllm_capacity.commands.engine_flags import add_engine_flags, engine_words
from vllm_capacity.settings import Setting, Settings, read_settings_file, resolve_settings


def add_settings(parser: argparse.ArgumentParser, settings: Iterable[Setting]) -> None:
    """Add a flag for each setting, the one that names a file of them, and vLLM's own flags."""
    parser.add_argument(
        "--config.file",
        dest="config.file",
        metavar="PATH",
        default=os.environ.get("VLLM_CAPACITY_CONFIG_FILE"),
        help="YAML file of settings, and of targets with settings of their own",
    )
    for setting in settings:
        _add(parser, setting)
    add_engine_flags(parser)


def settings_given(args: argparse.Namespace, **options: Any) -> Settings:
    """What flags, environment and file set; ``options`` go to ``resolve_settings``.

    Raises:
        SettingsError: with every fault of all three.
    """
    flags = vars(args)
    file = read_settings_file(flags["config.file"]) if flags["config.file"] else {}
    return resolve_settings(flags, os.environ, file, engine_words=engine_words(args), **options)


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
