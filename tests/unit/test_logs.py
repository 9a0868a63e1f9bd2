"""Logs: what libraries log has the same form as the rest, and holds no secret."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from midwatch.logs import forward_library_logs, open_log
from midwatch.redaction import Redactor
from midwatch.settings import LogSettings


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


def test_what_libraries_log_is_forwarded_once_and_redacted() -> None:
    stream = io.StringIO()
    log = open_log(LogSettings(format="json"), stream, Redactor(["hunter2hunter2"]))
    forward_library_logs(log)
    forward_library_logs(log)
    logging.getLogger("psycopg").warning("not cancelled: %s", "hunter2hunter2")
    logging.getLogger("httpx").info("a request")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["level"], line["logger"]) == ("warning", "psycopg")
    assert (
        line["event"].startswith("not cancelled: ") and "hunter2" not in line["event"]
    )


def test_a_line_for_people_has_its_fields_and_cannot_forge_another() -> None:
    stream = io.StringIO()
    log = open_log(LogSettings(format="console"), stream, Redactor(["hunter2hunter2"]))
    log.debug("not at this level")
    log.info("claimed\n\x1b[2Jready", batch=3, why="it is \x1b[1m hunter2hunter2")
    try:
        raise ValueError("no hunter2hunter2")
    except ValueError:
        log.exception("failed")
    first, second, *trace = stream.getvalue().splitlines()
    assert " info " in first and " batch=3 " in first and "ready" in first
    assert "why='it is \\x1b[1m [redacted:" in first and "\x1b" not in first
    assert " error " in second and second.endswith("failed")
    assert trace[0].startswith("Traceback") and "ValueError: no [red" in trace[-1]
    assert "hunter2" not in stream.getvalue()
