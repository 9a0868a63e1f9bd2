"""A scripted Messages API on loopback: what our tests talk to, and what you test settings with.

In a program::

    async with ScriptedMessagesAPI(
        Rule([rate_limited(retry_after=2), Answer("It is the lock.")], contains="orders-db"),
    ) as api:
        client = AsyncAnthropic(api_key="sk-ant-test", base_url=api.base_url)
        ...
        assert len(api.calls) == 2

A rule without conditions may be written as its answer: `ScriptedMessagesAPI(overloaded())`.
Calls that no rule fits get `Answer()`: a minimal instance of the schema that was asked for, or a
short text. Of several answers each call takes the next, and the last one repeats.

As a process::

    python -m midwatch.testing.messages_api --port 0 --script FILE.json --record FILE.jsonl

prints its base URL as its first line and serves until SIGTERM or SIGINT. It appends one JSON
line to the record for every request when that arrives (`number`, `received_at`, `method`,
`path`, `query`, `headers`, `body`), before it answers. Without `--script`, every call gets the
default answer. A script that cannot be used ends it with one line and exit code 2.

The script file::

    {
      "rules": [
        {"contains": "orders-db", "answers": [
          {"fault": "rate_limited", "retry_after": 2},
          {"structured": {"verdict": "identified"}, "usage": {"output_tokens": 400}}
        ]},
        {"tools": true, "answer": {"tool_uses": [{"name": "Bash", "input": {"command": "ls"}}]}},
        {"stream": true, "answer": {"fault": "cut", "answer": "Half of this.", "keep": 0.5}},
        {"matches": "disk +full", "answer": {"fault": "hold", "name": "gate", "then": "Go on."}}
      ],
      "default": "Nothing in particular."
    }

- A rule has `answer` or `answers`, and any of the conditions `model`, `contains`, `matches` (a
  regular expression), `tools`, `stream`, `structured` (true or false), `path` and `method` (by
  default POST /v1/messages). The first rule that fits answers.
- An answer is a text, or an object with the fields of `Answer`: `text`, `structured`,
  `tool_uses`, `thinking`, `blocks`, `stop_reason`, `stop_sequence`, `usage`, `model`, `id`,
  `keep`.
- A fault is an object with `fault` and the arguments of the fault, by the names they have
  in this module: `error` (status, type, message, error_code, details, headers),
  `rate_limited` (retry_after, error_code), `spend_limit_reached`, `overloaded`, `server_error`
  (status), `unauthorized`, `forbidden`, `unknown_model` (model), `request_too_large`,
  `bad_request` (message), `prompt_too_long`, `raw` (status, body, content_type, headers),
  `html_page` (status), `empty_body`, `truncated` (answer, keep), `cut` (answer, keep, reset),
  `reset`, `drip` (answer, size, interval), `hang` (after_head), `pings` (interval),
  `stream_error` (error, answer, after), `garbled` (garbage, answer, after), `delay` (seconds,
  then), `refusal` (text, usage), `cut_by_max_tokens` and `context_window_exceeded` (answer,
  keep), and `hold` (name, then), which `POST /holds/NAME/release` opens. Times are in seconds,
  sizes in bytes; `keep` is a share from 0 to 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from midwatch.errors import SettingsError

from .scripted.answers import (
    Answer,
    ToolUse,
    Usage,
    context_window_exceeded,
    cut_by_max_tokens,
    refusal,
)
from .scripted.errors import (
    Error,
    bad_request,
    forbidden,
    overloaded,
    prompt_too_long,
    rate_limited,
    request_too_large,
    server_error,
    spend_limit_reached,
    unauthorized,
    unknown_model,
)
from .scripted.exchange import Exchange, Reply
from .scripted.faults import (
    Cut,
    Delay,
    Drip,
    Garbled,
    Hang,
    Pings,
    Raw,
    Reset,
    StreamError,
    Truncated,
    empty_body,
    html_page,
)
from .scripted.hold import Hold
from .scripted.requests import Request, fingerprint
from .scripted.rules import Rule
from .scripted.server import ScriptedMessagesAPI

__all__ = [
    "Answer",
    "Cut",
    "Delay",
    "Drip",
    "Error",
    "Exchange",
    "Garbled",
    "Hang",
    "Hold",
    "Pings",
    "Raw",
    "Reply",
    "Request",
    "Reset",
    "Rule",
    "ScriptedMessagesAPI",
    "StreamError",
    "ToolUse",
    "Truncated",
    "Usage",
    "bad_request",
    "context_window_exceeded",
    "cut_by_max_tokens",
    "empty_body",
    "fingerprint",
    "forbidden",
    "html_page",
    "overloaded",
    "prompt_too_long",
    "rate_limited",
    "refusal",
    "request_too_large",
    "server_error",
    "spend_limit_reached",
    "unauthorized",
    "unknown_model",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """The process form; returns the exit code: 0 after a signal, 1 if it could not
    record or answer something by then, 2 if it cannot begin."""
    options = _parser().parse_args(arguments)
    try:
        api, record = _build(options.port, options.script, options.record)
        api.start()
    except SettingsError as error:
        return _refuse(error.line())
    except (OSError, OverflowError) as error:
        return _refuse(f"cannot listen on 127.0.0.1:{options.port}: {error}")
    try:
        _serve_until_signal(api)
    finally:
        api.stop()
        if record:
            record.close()
    if api.failures:
        print(f"midwatch.testing.messages_api: {api.failures[0]}", file=sys.stderr)
    return 1 if api.failures else 0


def _build(
    port: int, script: Path | None, record: Path | None
) -> tuple[ScriptedMessagesAPI, TextIO | None]:
    # Loading brings pydantic in, which those who only import the server do not need.
    from .scripted.script_file import load_script, read_script

    loaded = load_script(script) if script else read_script({})
    log = _open(record) if record else None
    api = ScriptedMessagesAPI(
        *loaded.rules,
        default=loaded.default,
        holds=loaded.holds,
        port=port,
        observer=_appender(log) if log else None,
    )
    return api, log


def _open(record: Path) -> TextIO:
    try:
        return record.open("a", encoding="utf-8")
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=str(record)) from None


def _appender(log: TextIO) -> Callable[[Request], None]:
    def append(request: Request) -> None:
        log.write(json.dumps(request.to_json()) + "\n")
        log.flush()

    return append


def _serve_until_signal(api: ScriptedMessagesAPI) -> None:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    print(api.base_url, flush=True)
    ended.wait()


def _refuse(line: str) -> int:
    print(f"midwatch.testing.messages_api: {line}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m midwatch.testing.messages_api",
        description="A scripted Messages API on 127.0.0.1, for tests.",
    )
    parser.add_argument("--port", type=int, default=0, help="0: the system chooses")
    parser.add_argument("--script", type=Path, help="a JSON file with rules")
    parser.add_argument("--record", type=Path, help="one JSON line a request")
    return parser


if __name__ == "__main__":
    sys.exit(main())
