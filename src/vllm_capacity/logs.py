"""Logs of the daemon: structlog to standard error, for people or as JSON lines."""

import logging
import sys

import structlog

from vllm_capacity.secrecy import without_secrets

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logs(level: str, form: str) -> None:
    """Set the least level and the form, "console" or "json", of every line."""
    _silence_scheduler()
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _hide_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _silence_scheduler() -> None:
    """It reports each crash to our own listener; its warnings repeat slow targets."""
    for name in ("apscheduler", "apscheduler.scheduler", "apscheduler.executors.default"):
        logging.getLogger(name).disabled = True


def _hide_secrets(
    _: object, __: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """The last thing that happens to a line: what others wrote may hold what none may read."""
    return {
        key: without_secrets(value) if isinstance(value, str) else value
        for key, value in line.items()
    }


def silence_logs() -> None:
    """Write no line at all, for a command that shows what there is to say in another way."""
    _silence_scheduler()
    structlog.configure(processors=[_drop], logger_factory=structlog.ReturnLoggerFactory())


def _drop(_: object, __: str, ___: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent
