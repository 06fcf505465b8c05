"""How a log record is written: one line, as text or as JSON."""

import logging
from collections.abc import MutableMapping
from typing import Any, TextIO

from backprop_core.runtime import log_context
from backprop_core.runtime.redaction import blank_secrets, blank_trace


def plain_traceback(file: TextIO, error: Any) -> None:
    """Write a traceback like Python's, without secrets."""
    file.write(f"\n{blank_trace(error)}")


def formatter(*, as_json: bool, colors: bool) -> logging.Formatter:
    """One line per record, as text or as JSON."""
    import structlog

    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, pad_level=False, exception_formatter=plain_traceback
        )
    )
    chain: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
    ]
    if as_json:
        chain += [structlog.stdlib.add_logger_name, structlog.processors.format_exc_info, in_context]
    last = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, blank, renderer]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=chain, processors=last)


def blank(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank secrets in the text of a record before it is rendered; level, time and names stay."""
    texts = {name: blank_secrets(str(event[name])) for name in ("event", "exception") if name in event}
    return {**event, **texts}


def in_context(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the run, line and stage that the process works on."""
    return {**event, **log_context.current()}


def rewrite_handlers() -> None:
    """Write what all handlers write from now on as JSON: those of Prefect, in a flow run that it has started."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler):
            handler.setFormatter(formatter(as_json=True, colors=False))
