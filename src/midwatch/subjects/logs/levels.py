"""The level and the message of a line, in the formats that programs usually write. Pure.

JSON (bunyan, pino, zap, OpenTelemetry, Python's and Java's encoders), logfmt, syslog (RFC 3164 and RFC 5424, also as
rsyslog writes it), klog, nginx and Apache, log4j and logback, Python's logging, and levels in brackets or before a colon.
"""

from __future__ import annotations

import functools
import json
import math
import re
from enum import IntEnum
from typing import Any, NamedTuple

from midwatch.subjects.logs.cut_json import cut_object

LONGEST = 2000
"""Characters, or bytes, of a line that are read."""
LONGEST_JSON = 262_144
"""Those of an object of JSON: its level and its message may stand after a stack trace."""
_HEAD = 200  # characters in which a level, or an object of JSON, begins


class Level(IntEnum):
    """How bad a line is. Sorts with the worst last."""

    DEBUG = 1
    INFO = 2
    WARNING = 3
    ERROR = 4
    FATAL = 5


class Said(NamedTuple):
    """What a line says.

    Attributes:
        level: None where the line has none.
        message: The line without what stands before its message, such as time and level.
        by_digits: Whether a digit showed the level: another line that differs in digits alone may have another one.
        trace: Whether the line can be a part of a stack trace that began before it.
    """

    level: Level | None
    message: str
    by_digits: bool = False
    trace: bool = False


_WORDS = {
    Level.DEBUG: "trace debug dbg verbose fine finer finest",
    Level.INFO: "info information informational notice inf log config",
    Level.WARNING: "warning warn wrn",
    Level.ERROR: "error err eror severe",
    Level.FATAL: "fatal critical crit alert emerg emergency panic dpanic ftl",
}
LEVELS = {word: level for level, words in _WORDS.items() for word in words.split()}
_ANY = "|".join(sorted(LEVELS, key=len, reverse=True))
_SYSLOG = (5, 5, 5, 4, 3, 2, 2, 1)  # by severity, RFC 5424, section 6.2.1

SUSPECT = (
    rb"(?i:error|fatal|panic|crit|emerg|alert|severe|exception|traceback|uncaught|unhandled|out of memory|segfault"
    rb"|\b(?:err|eror|ftl)\b)"
    rb'|"(?:level|severity|severityNumber|severity_number|SeverityNumber|lvl)\\?" ?: ?(?:[3-9]\d|1[7-9]|2[0-4])\b'
    rb'|(?m:^(?:\S+ std(?:out|err) [FP]\S* |\{"log": ?")?(?:[EF]\d{4} |<\d{1,3}>))'
)
"""RE2: what a line of level error or worse has; most lines have none of it, and are never looked at."""


@functools.cache
def suspect() -> Any:
    """Return the search for lines that may be errors."""
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, as they are
    options.log_errors = False
    return re2.compile(SUSPECT, options)


_PRI = re.compile(r"<(\d{1,3})>(?:1 (?=\S))?")
_RFC5424 = re.compile(
    r"(?:-|\d{4}-\d\d-\d\dT\S+) \S+ \S+ \S+ \S+ (?:-|(?:\[(?:[^\]\\]|\\.)*\])+) ?(?:\ufeff)?"
)
_RFC3164 = re.compile(
    r"(?:(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+) "
    r"\S+ (?=[\w./@-]+(?:\[\d+\])?: )"
)
_TAG = re.compile(r"[\w./@-]+(?:\[\d+\])?: ")
_KLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (\S+:\d+\] ?)")
_KLOG_LEVELS = {"I": Level.INFO, "W": Level.WARNING, "E": Level.ERROR, "F": Level.FATAL}
_LOGFMT = re.compile(
    r'(?:^|[\s{,])(?:level|lvl|severity|log\.level)=(?:"(\w+)"|(\w+))', re.IGNORECASE
)
_LOGFMT_MESSAGE = re.compile(
    r'(?:^|\s)(?:msg|message)=("(?:[^"\\]|\\.)*"|\S+)(.*)', re.DOTALL
)
# In brackets, between bars, or before a colon at the beginning: in any case. Else as a word in capitals.
_BRACKETED = re.compile(
    rf"\[\s*(?:[\w.]+:)?({_ANY})\s*\]|\|\s*({_ANY})\s*\||<({_ANY})>|(?:^|(?:^|\s)[\w./@-]+(?:\[\d+\])?: )({_ANY})(?=:)",
    re.IGNORECASE,
)
_CAPITALS = re.compile(
    rf"(?:(?<![\w./=-])|(?<=[a-z]\.))({'|'.join(sorted((w.upper() for w in LEVELS), key=len, reverse=True))}|Error|Warning|Info|Debug|Fatal|Critical)"
    r"(?![\w./=]|-\w)"
)
_AFTER = re.compile(r"[\s\]:|>-]*")
_TIME = re.compile(
    r"\[?(?:\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?\]?[ :|-]*"
)
_CRASH = re.compile(
    r"(?P<fatal>panic: |fatal error: |runtime: out of memory|Out of memory: Killed|.{0,80}(?:segfault at|\(core dumped\)))"
    r"|Exception in thread |Unhandled |Uncaught "
)
_TRACE = re.compile(
    r"Traceback \(most recent call last\)|Caused by: |Suppressed: |During handling of the above|The above exception was"
    r"|(?:[A-Za-z_]\w*[.$])*[A-Z]\w*(?:Error|Exception|Throwable|Warning|Interrupt|Exit)\b(?:: |:?$)"
)
_OWN_TRACE = re.compile(
    r"Traceback \(most|(?:[A-Za-z_]\w*[.$])*[A-Z]\w*(?:Error|Exception|Throwable)\b"
)


def said(text: str, hint: Level | None = None) -> Said:
    """Return what the first line of a record says.

    Args:
        text: The line, without what its container or journal put around it.
        hint: The level that the source knows, which counts where the text itself has none.
    """
    text = text[:LONGEST_JSON]
    if text[:1] == "{" and (found := _json(text)) is not None:
        return found if found.level is not None else found._replace(level=hint)
    by_digits = False
    if text[:1] == "<" and (pri := _PRI.match(text)):
        hint, by_digits = Level(_SYSLOG[int(pri[1]) & 7]), True
        text = text[pri.end() :]
        if pri[0].endswith(" "):
            text = text[_end(_RFC5424, text) :]
    text = text[_end(_RFC3164, text) :]
    inner = _inner(text) if text.find("{", 0, _HEAD) >= 0 else None
    if inner is not None and inner.level is not None:
        return inner
    text = text[:LONGEST]
    if klog := _KLOG.match(text):
        return Said(_KLOG_LEVELS[klog[1]], text[klog.start(2) :])
    if found := _logfmt(text) or _marked(text):
        return found._replace(by_digits=by_digits)
    plain = text if _TRACE.match(text) else text[_end(_TAG, text) :]
    plain = plain[_end(_TIME, plain) :]
    if crash := _CRASH.match(plain):
        return Said(Level.FATAL if crash["fatal"] else Level.ERROR, plain)
    if _TRACE.match(plain):
        level = Level.ERROR if _OWN_TRACE.match(plain) else hint
        return Said(level, plain, trace=True)
    return Said(hint, inner.message if inner is not None else plain, by_digits)


def _inner(text: str) -> Said | None:
    """Return what an object of JSON after a tag or a time says; None if there is none, or a level stands before it."""
    tag = _TAG.match(text)
    if tag and tag[0][:-2].lower() not in LEVELS:
        text = text[tag.end() :]
    text = text[_end(_TIME, text) :]
    return _json(text) if text[:1] == "{" else None


def readable(data: bytes, start: int, end: int) -> bytes:
    """Return what is read of a line: the beginning of one that is long.

    Args:
        data: A block of lines.
        start: Where the line begins.
        end: Where it ends.
    """
    if end - start > LONGEST:
        is_object = data.find(b"{", start, start + _HEAD) >= 0
        end = min(end, start + (LONGEST_JSON if is_object else LONGEST))
    return data[start:end]


def is_further(text: str) -> bool:
    """Return whether a line can only belong to the record before it: it is empty or indented."""
    return not text or text[0] in " \t"


def _logfmt(text: str) -> Said | None:
    found = _LOGFMT.search(text, 0, 4 * _HEAD)
    level = LEVELS.get((found[1] or found[2]).lower()) if found else None
    if level is None:
        return None
    message = _LOGFMT_MESSAGE.search(text)
    if message is None:
        return Said(level, text)
    why = re.search(r'\b(?:err|error)=("(?:[^"\\]|\\.)*"|\S+)', text)
    shown = message[1].strip('"') + (f": {why[1].strip(chr(34))}" if why else "")
    return Said(level, shown)


def _marked(text: str) -> Said | None:
    """Return the level that is marked as one; the first one counts, as a message may have others."""
    marks = [
        found
        for pattern in (_BRACKETED, _CAPITALS)
        if (found := pattern.search(text, 0, _HEAD))
    ]
    if not marks:
        return None
    first = min(marks, key=lambda one: one.start())
    word = next(group for group in first.groups() if group)
    level = LEVELS.get(word.lower(), Level.DEBUG)
    rest = text[_end(_AFTER, text, first.end()) :]
    return Said(level, rest or text)


def _end(pattern: re.Pattern[str], text: str, at: int = 0) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at


# ------------------------------------------------------------------ JSON

LEVEL_NAMES = (
    *("level", "severity", "lvl", "levelname", "log.level", "severity_text"),
    *("severityText", "SeverityText", "loglevel", "@l", "Level", "LEVEL", "priority"),
)
NUMBER_NAMES = ("severity_number", "severityNumber", "SeverityNumber")
MESSAGE_NAMES = (
    *("msg", "message", "@m", "@mt", "log", "body", "Body", "event", "text"),
    *("short_message", "Message", "error", "err", "exception"),
)
CAUSE_NAMES = ("error", "err", "exception", "exc_info", "error.message")


def _json(text: str) -> Said | None:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = cut_object(text)
    if not isinstance(read, dict):
        return None
    level, by_digits = json_level(read)
    nested = read.get("log")
    if level is None and isinstance(nested, dict):  # the Elastic Common Schema
        level, by_digits = json_level(nested)
    message = next(
        (shown for name in MESSAGE_NAMES if (shown := shown_text(read.get(name)))), text
    )
    why = next(
        (shown for name in CAUSE_NAMES if (shown := shown_text(read.get(name)))),
        "",
    )
    if why and why not in message:
        message = f"{message}: {why.partition(chr(10))[0]}"
    if level is None:
        inner = said(message) if message is not text else Said(None, text)
        level, by_digits = inner.level, inner.by_digits
    return Said(level, message, by_digits)


def shown_text(value: Any) -> str:
    """Return the text of a member that may be a message; empty if it has none."""
    if isinstance(value, dict):
        value = value.get("message") or value.get("msg") or value.get("stringValue")
    return value if isinstance(value, str) else ""


def json_level(read: dict[str, Any]) -> tuple[Level | None, bool]:
    """Return the level that an object states, None if it states none, and whether a digit showed it."""
    for name in NUMBER_NAMES:
        if isinstance(number := read.get(name), int):  # OpenTelemetry: 1 to 24
            return Level(min(5, max(1, (number - 1) // 4))), True
    for name in LEVEL_NAMES:
        value = read.get(name)
        if isinstance(value, str) and value:
            if value.isdecimal():
                return _of_number(int(value)), True
            if (level := LEVELS.get(value.strip().lower())) is not None:
                return level, False
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if isinstance(value, int) or math.isfinite(value):
                return _of_number(int(value)), True
    return None, False


def _of_number(number: int) -> Level:
    """Return the level of a number: 10 to 60 as bunyan and pino have it, 0 to 7 as syslog."""
    if number < 8:
        return Level(_SYSLOG[max(0, number)])
    return Level(min(5, max(1, number // 10 - 1)))
