"""``vllm-capacity top``: the verdict and the pictures in a terminal, or documents as JSON lines."""

import argparse
import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from vllm_capacity.commands.setting_flags import add_settings, settings_given
from vllm_capacity.errors import CapacityError
from vllm_capacity.logs import silence_logs
from vllm_capacity.settings import SETTINGS, Settings
from vllm_capacity.top.reading import records, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_capacity.top.feed import Feed

_EPILOG = """\
examples:
  vllm-capacity top                             a daemon on port 8935, else a vLLM on port 8000
  vllm-capacity top http://a:8000 http://b:8000 --model-config ./model --max-num-seqs 256
  vllm-capacity top http://monitor:8935         what a running `vllm-capacity serve` knows
  vllm-capacity top --once http://a:8000        one screen; in a pipe always
  vllm-capacity top --once --json http://a:8000

keys: q quits, j and k choose an engine, s orders them, ? tells the keys.

exit status:
  0  something answered
  1  nothing answered
  2  the command was asked wrongly
"""
#: Settings of the daemon that mean nothing here.
_OF_SERVING = ("web.", "log.")
# For one screen of a vLLM that is watched right here; see ``StatusFeeds.settle``.
_ONCE_INTERVAL_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``top``: those of ``serve`` that watch, and how to show it."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "target",
        nargs="*",
        metavar="URL",
        help="vLLM servers, or daemons of `vllm-capacity serve`: each is asked which it is",
    )
    shown = parser.add_argument_group("how it is shown")
    shown.add_argument("--once", action="store_true", help="one screen, or one line of --json")
    shown.add_argument(
        "--json", action="store_true", help="status documents, one a line, in place of the screen"
    )
    shown.add_argument("--no-color", action="store_true", help="no colours; NO_COLOR does the same")
    shown.add_argument(
        "--interval",
        dest="scrape-interval",
        metavar="DURATION",
        help="the same as --scrape-interval",
    )
    kept = (s for s in SETTINGS if s.name != "target" and not s.name.startswith(_OF_SERVING))
    add_settings(parser, kept)


def run(args: argparse.Namespace) -> int:
    """Show until told to stop, or once.

    Raises:
        CapacityError: nobody answers, or the screen needs what is not installed.
    """
    if not args.json:
        _need_rich()
    args.target = args.target or None
    settings = settings_given(args, needs_target=False)
    silence_logs()
    if args.json and not args.once:
        return asyncio.run(_json_lines(settings))
    is_live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if is_live and not args.once:
        from vllm_capacity.commands.top_screen import show_live  # noqa: PLC0415 (needs rich)

        return asyncio.run(show_live(settings, no_color=args.no_color))
    return asyncio.run(_once(settings, as_json=args.json, no_color=args.no_color))


def _need_rich() -> None:
    try:
        import_module("rich")
    except ModuleNotFoundError:
        raise CapacityError(
            "the screen needs rich: pip install 'vllm-capacity[top]'; --json works without it"
        ) from None


async def _once(settings: Settings, *, as_json: bool, no_color: bool) -> int:
    from vllm_capacity.status_feeds import StatusFeeds  # noqa: PLC0415 (after faults)

    interval = min(settings.scrape_interval, _ONCE_INTERVAL_SECONDS)
    async with StatusFeeds(replace(settings, scrape_interval=interval)) as sources:
        await sources.settle()
        feeds = sources.feeds()
        problems = _problems(feeds)
        if problems is not None:
            raise CapacityError(problems)
        if not as_json:
            from vllm_capacity.commands.top_screen import show_once  # noqa: PLC0415 (needs rich)

            await show_once(sources, no_color=no_color)
        for feed in feeds if as_json else ():
            _print_json(feed)
    return 0


def _problems(feeds: "Sequence[Feed]") -> str | None:
    """Why nobody answers; None where somebody does."""
    problems = []
    for feed in feeds:
        targets = records(feed.document, "targets")
        if any(records(t, "engines") for t in targets) or (feed.origin and feed.problem is None):
            return None
        sources = (source for t in targets for source in records(t, "sources"))
        problems += [feed.problem, *(text(s, "last_error") for s in sources if _is_vllm(s))]
    return "nothing answers: " + "; ".join(p for p in problems if p)


def _is_vllm(source: object) -> bool:
    return text(source, "source") == "vllm"


async def _json_lines(settings: Settings) -> int:
    """A line for every new document, until a signal."""
    from vllm_capacity.status_feeds import StatusFeeds  # noqa: PLC0415 (after faults)

    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    printed: dict[str, object] = {}
    async with StatusFeeds(settings) as sources:
        while not stopping.is_set():
            for feed in sources.feeds():
                if feed.document is not None and printed.get(feed.origin) is not feed.document:
                    _print_json(feed)
                if feed.problem is not None and printed.get(feed.origin) != feed.problem:
                    print(f"vllm-capacity: {feed.problem}", file=sys.stderr)
                printed[feed.origin] = feed.problem or feed.document
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), settings.scrape_interval)
    return 0


def _print_json(feed: "Feed") -> None:
    print(json.dumps(feed.document, ensure_ascii=False, allow_nan=False), flush=True)
