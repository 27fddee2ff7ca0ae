"""The command line: one subcommand a file in ``commands``, loaded only when it is called."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from vllm_capacity.errors import CapacityError, InputError
from vllm_capacity.secrecy import without_secrets

COMMANDS = {
    "serve": "watch vLLM servers and serve their capacity to Prometheus",
    "top": "show one or many engines live in a terminal, from a daemon or straight from vLLM",
    "check": "look at one vLLM server once: what it shows, what is missing, what each gap costs",
    "predict": "say what a deployment's memory and KV cache ought to be, without running it",
    "parse-log": "read a vLLM start-up log: what it was asked, measured and refused",
    "record": "keep a server's metrics pages in a file, to replay or to send with a bug report",
    "replay": "feed a recording of metrics pages through the pipeline of the daemon",
    "simulate": "serve a simulated vLLM engine, to try things against",
}
_EPILOG = "Each command has its own --help. Documentation: docs/ in the source distribution."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0: it did what was asked; 1: it could not; 2: it was asked wrongly.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in words if not word.startswith("-")), None)
    parser = _parser(name)
    args = parser.parse_args(words)
    try:
        return int(args.run(args))
    except InputError as error:
        _complain(error)
        return 2
    except CapacityError as error:
        print(f"vllm-capacity: {without_secrets(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what was wrong, and where the flags are explained."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {without_secrets(message)}; see {self.prog} --help\n")


class _Version(argparse.Action):
    """Prints the version, which is only looked for then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from vllm_capacity import __version__  # noqa: PLC0415 (slow to find out)

        print(f"vllm-capacity {__version__}")
        parser.exit()


def _parser(name: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vllm-capacity",
        description="Predicts what vLLM's KV cache ought to be, and compares it with the engine.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command, summary in COMMANDS.items():
        sub = subparsers.add_parser(
            command, help=summary, description=f"{summary[:1].upper()}{summary[1:]}."
        )
        if command == name:
            module = import_module(f"vllm_capacity.commands.{command.replace('-', '_')}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _complain(error: InputError) -> None:
    for fault in error.faults:
        print(f"vllm-capacity: {error.source}: {fault}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
