"""``vllm-capacity serve``: the daemon."""

import argparse
import asyncio
import os
import sys

from vllm_capacity.commands.setting_flags import add_settings, settings_given
from vllm_capacity.settings import SETTINGS

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
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    # httpx loads its own command line, and click and rich with it, where they are installed: 4 MB.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

    from vllm_capacity.daemon import Daemon  # noqa: PLC0415 (after faults are out of the way)
    from vllm_capacity.logs import configure_logs  # noqa: PLC0415

    settings = settings_given(args)
    configure_logs(settings.log_level, settings.log_format)
    asyncio.run(Daemon(settings, revision=os.environ.get("GIT_REVISION", "unknown")).run())
    return 0
