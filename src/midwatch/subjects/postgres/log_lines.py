"""What a server's log says: its records in each format, and the crashes and damage among them.

Clients choose much of a log: names of databases, roles and applications, statements, messages of
RAISE. Only what the server itself wrote in front of a message gives its severity. csvlog and jsonlog
separate the two. A line in plain text is split by the server's own `log_line_prefix`; where a name
makes a second reading possible, the lines of the same record (DETAIL, CONTEXT, STATEMENT) decide.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

# ------------------------------------------------------------------ kinds of crash and damage

_MAIN = "DEBUG[1-5]?|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC"
# In the order of a record, each at most once.
_MORE = ("DETAIL", "HINT", "QUERY", "CONTEXT", "LOCATION", "BACKTRACE", "STATEMENT")
_SEVERITY = re.compile(rf"(?:({_MAIN})|({'|'.join(_MORE)})):  ")
# csvlog translates the severity to lc_messages, jsonlog does not.
_PANIC = re.compile(
    "PANIC|PANIK|PANICO|PÁNICO|PÂNICO|PANIKA|ПАНИКА|ПАНІКА|პანიკა|손상|灾难性错误|嚴重錯誤"
)
# "client backend (PID 7)", "background worker "x" (PID 7)": no colon, so no logged statement.
_ENDED = r'[a-z][a-z ]{0,40}(?:"[^"]{0,80}" )?\(PID \d+\) was terminated by '
_KINDS: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (kind, severities, re.compile(pattern))
    for kind, severities, pattern in (
        ("panic", "PANIC", ""),
        ("crash", "LOG", _ENDED),
        ("crash", "LOG", "database system was not properly shut down"),
        ("crash", "LOG", "database system was interrupted while in recovery"),
        (
            "removed WAL",
            "ERROR FATAL LOG",
            r"(?:could not receive data from WAL stream: (?:ERROR|FATAL): +)?"
            r"requested WAL segment \S+ has already been removed",
        ),
        (
            "out of memory at fork",
            "ERROR FATAL LOG WARNING",
            "could not fork .*Cannot allocate memory",
        ),
        (
            "process limit",
            "ERROR FATAL LOG WARNING",
            "could not fork .*Resource temporarily unavailable",
        ),
        (
            "shared memory full",
            "ERROR FATAL LOG WARNING",
            "out of shared memory|not enough shared memory"
            "|could not (?:create|map|resize|allocate|open) .*shared memory"
            ".*(?:No space left on device|Cannot allocate memory)",
        ),
        ("disk quota", "ERROR FATAL LOG WARNING", "could not .*Disk quota exceeded"),
        (
            "disk full",
            "ERROR FATAL LOG WARNING",
            "could not .*No space left on device|could not extend file .*: wrote only",
        ),
        ("out of memory", "ERROR FATAL LOG", "out of memory"),
        (
            "damaged data",
            "ERROR FATAL WARNING LOG",
            r"(?:\d+ )?invalid pages? (?:in|among) blocks?"
            r"|(?:zeroing out|ignoring) \d+ (?:invalid pages|checksum failures) among blocks"
            r"|ignoring checksum failure in block|could not read blocks?|page verification failed|unexpected data beyond EOF|missing chunk number"
            r"|found (?:xmin|multixact|update xid) \d+ from before"
            r"|(?:index|table) .*contains (?:unexpected zero page|corrupted page)"
            r"|could not access status of transaction \d",
        ),
        (
            "disk error",
            "ERROR FATAL LOG WARNING",
            "could not .*(?:Input/output error|Read-only file system|Structure needs cleaning)",
        ),
    )
)
KINDS = tuple(dict.fromkeys(kind for kind, _, _ in _KINDS))

# SQLSTATE says the same in every language. The texts above come first, as they are finer.
_STATES = {
    "53100": "disk full",
    "53200": "out of memory",
    "58030": "disk error",
    "XX001": "damaged data",
    "XX002": "damaged data",
}
# At least one of these is in every line that reports a crash or damage.
_TELLING = re.compile(
    rf"{_PANIC.pattern}|\) was terminated|not properly shut|interrupted while|already been removed|could not fork"
    r"|shared memory|No space left|wrote only|Disk quota|out of memory|invalid page|checksum fail"
    r"|could not read block|verification failed|beyond EOF|missing chunk|found (?:xmin|multi|update)"
    r"|contains (?:unexpected|corrupted)"
    r"|could not access status|Input/output|Read-only file|needs cleaning"
    rf"|{'|'.join(_STATES)}"
)
# Of the innermost function; its name and types may have anything within quotes, also line breaks.
_RAISED = re.compile(
    r'PL/pgSQL function (?:[^"\n]|"[^"]*")+? at (?:RAISE|ASSERT)\s*(?:$|\n)'
)


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the server. `client` tells that it came from a session, not from the server's own processes."""

    severity: str
    message: str
    line: str = ""
    state: str = ""
    detail: str = ""
    client: bool = False
    context: str = ""
    statement: bool = False
    database: str = ""
    role: str = ""
    application: str = ""

    @property
    def kind(self) -> str | None:
        """The kind of crash or damage that it reports, or None."""
        if _PANIC.fullmatch(self.severity):
            return "panic"
        for kind, severities, pattern in _KINDS:
            if self.severity in severities.split() and pattern.match(self.message):
                return None if self._from_client(kind) else kind
        # Warnings and below can carry any SQLSTATE.
        if self.severity in ("LOG", "WARNING", "NOTICE", "INFO", "DEBUG"):
            return None
        kind = _STATES.get(self.state, "")
        return None if not kind or self._from_client(kind) else kind

    def _from_client(self, kind: str) -> bool:
        """Return whether a client chose the message: RAISE can write any, in any severity but PANIC."""
        if _RAISED.match(self.context):
            return True
        # The postmaster and the startup process report a crash; neither runs a statement.
        return kind == "crash" and (self.client or self.statement or bool(self.context))

    @property
    def evidence(self) -> list[str]:
        """The record as lines of plain text; the lines after the first are indented."""
        names = {"client": self.role and f"{self.role}@{self.database}"}
        names |= {"application": self.application, "context": self.context}
        lines = [*self.line.split("\n"), self.detail]
        lines += [f"{name}: {value}" for name, value in names.items() if value]
        first, *others = (one for one in lines if one)
        return [first, *(f"\t{one}" for one in "\n".join(others).split("\n") if one)]

    @property
    def about(self) -> Mapping[str, str]:
        return {
            "kind": self.kind or "",
            "message": self.message.partition("\n")[0],
            "state": self.state,
            "database": self.database,
            "role": self.role,
            "application": self.application,
        }


# ------------------------------------------------------------------ plain text

_NAME = 63  # bytes of a name, of which a character has at least one
_TIME = r"\d{4}-\d\d-\d\d(?: [\d:.,]+)?(?: [\w+<>:-]+)?"
_SERVER_ESCAPES = {
    "t": _TIME,
    "m": _TIME,
    "s": _TIME,
    "n": r"\d+(?:\.\d+)?",
    "p": r"\d+",
    "P": r"\d*",
    "l": r"\d+",
    "c": r"[0-9a-f]+\.[0-9a-f]+",
    "v": r"(?:-?\d+/\d+)?",
    "x": r"\d+",
    "e": r"[0-9A-Z]{5}",
    "Q": r"-?\d+",
    "L": r"\S*",
    "b": r"[^:]{1,96}?",
}
# Of a session; empty for the server's own processes.
_CLIENT_ESCAPES = {
    # From PostgreSQL 16 on, a byte that is not printable ASCII is written as \xNN.
    "a": rf"(?:\\x[0-9a-f]{{2}}|\\(?!x[0-9a-f]{{2}})|[^\\]){{1,{_NAME}}}?",
    "u": rf".{{1,{_NAME}}}?",
    "d": rf".{{1,{_NAME}}}?",
    "i": rf".{{0,{_NAME}}}?",
    "h": r"\S+",
    "r": r"\S+",
}
_GROUPS = {"a": "application", "u": "role", "d": "database", "e": "state"}
_ESCAPE = re.compile(r"%(-?\d*)(.?)", re.DOTALL)
# Where log_destination has syslog: time, host, program; then the record's number and the line's.
_SYSLOG = (
    r"(?:<\d+>)?(?:\w{3} [ \d]\d [\d:]{8}|\d{4}-\d\d-\d\dT\S+) \S+ [^\s\[:]+(?:\[\d+\])?: "
    r"(?:\[\d+(?:-1)?\] )?"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to split a line.

    `key` is the prefix without line numbers. `rank` is the place within a record: 0 for the message, more for
    DETAIL, STATEMENT and the like.
    """

    key: tuple[str | None, ...]
    head: str
    severity: str
    message: str
    rank: int
    client: bool
    names: Mapping[str, str]


class LinePrefix:
    """The server's `log_line_prefix`, which splits a line into its prefix, severity and message."""

    def __init__(self, template: str, *, syslog: bool = False) -> None:
        start = _SYSLOG if syslog else ""
        own, _, rest = template.replace("%%", "\0").partition("%q")
        self.has_names = re.search(r"%-?\d*[ud]", own + rest) is not None
        self.has_client = re.search(r"%-?\d*[audirh]", own + rest) is not None
        self._server = re.compile(start + _pattern(own, client=False))
        self._client = re.compile(start + _pattern(own + rest, client=True))
        before = re.split(r"%-?\d*[audirh]", own + rest)[0]
        self._head = re.compile(start + _pattern(before, client=False))
        self._limit = 400 + len(template) + 4 * _NAME * template.count("%")

    def begins(self, line: str) -> bool:
        """Return whether the line begins as a record does."""
        return self._head.match(line) is not None

    def readings(self, line: str) -> list[Reading]:
        """Return each way to split the line, that with the shortest prefix first."""
        found = []
        for severity in _SEVERITY.finditer(line, 0, self._limit):
            prefix = line[: severity.start()]
            server = self._server.fullmatch(prefix)
            match = server or self._client.fullmatch(prefix)
            if match is not None:
                head = self._head.match(prefix)
                found.append(
                    Reading(
                        (str(bool(server)), *match.groups()),
                        head[0] if head else "",
                        severity[1] or severity[2],
                        line[severity.end() :],
                        _MORE.index(severity[2]) + 1 if severity[2] else 0,
                        self.has_client and server is None,
                        {k: v.strip() for k, v in match.groupdict().items() if v},
                    )
                )
        return found


def _pattern(template: str, *, client: bool) -> str:
    parts, place, named = [], 0, set()
    for escape in _ESCAPE.finditer(template):
        parts.append(re.escape(template[place : escape.start()].replace("\0", "%")))
        place = escape.end()
        letter, width = escape[2], bool(escape[1])
        if letter in _CLIENT_ESCAPES:
            part = _CLIENT_ESCAPES[letter] if client else ""
        elif letter in _SERVER_ESCAPES:
            part = _SERVER_ESCAPES[letter]
        else:
            continue  # the server writes nothing for it
        name = _GROUPS.get(letter, "") if client or letter == "e" else ""
        if name and name not in named:
            named.add(name)
            part = f"(?P<{name}>{part})"
        elif letter != "l":  # counts the lines, also within a record
            part = f"({part})"
        parts.append(f" *{part} *" if width else part)
    parts.append(re.escape(template[place:].replace("\0", "%")))
    return "".join(parts)


class TextLog:
    """Lines of a log in plain text. With several prefixes (it was changed), the first that fits a line counts."""

    def __init__(self, text: str, prefixes: Sequence[LinePrefix]) -> None:
        self._lines = text.split("\n")
        self._prefixes = prefixes

    @property
    def foreign(self) -> bool:
        """Whether it has records, but none that begins with one of the prefixes."""
        lines = [one for one in self._lines if _SEVERITY.search(one[:600])][:100]
        return (
            bool(self._prefixes) and bool(lines) and not any(map(self._readings, lines))
        )

    def records(self, until: float = math.inf) -> Iterator[Record]:
        """Yield what may be crashes and damage, in their order.

        Raises:
            TimeoutError: `until` of time.monotonic() has passed: a client can write lines that take long.
        """
        for place, line in enumerate(self._lines):
            if _TELLING.search(line) and not _continues(line):
                if time.monotonic() > until:
                    raise TimeoutError
                record = self.record(place)
                if record is not None:
                    yield record

    def errors(self, until: float = math.inf) -> Iterator[Record]:
        """Yield the errors that the server or a client caused, whatever they say, in their order.

        Raises:
            TimeoutError: `until` of time.monotonic() has passed.
        """
        for place, line in enumerate(self._lines):
            if not _ERRORS.search(line, 0, 1000) or _continues(line):
                continue
            if place % 64 == 0 and time.monotonic() > until:
                raise TimeoutError
            if not self._prefixes:
                record = guess(line)
            else:
                found = [one for one in self._readings(line) if not one.rank]
                record = _record(line, found[0], {}) if found else None
            if record is not None and record.severity in ("ERROR", "FATAL", "PANIC"):
                yield record

    def record(self, place: int) -> Record | None:
        """Return the record that begins with a line; None where it may as well be a client's text."""
        line = self._lines[place]
        if not self._prefixes:
            return guess(line)
        readings = self._readings(line)
        if not any(_record(line, one, {}).kind for one in readings):
            return None
        if self._completes(place, readings):
            return None
        readings = [one for one in readings if not one.rank]
        readings, more = self._narrowed(place, readings)
        records = [_record(line, one, more) for one in readings]
        if len({one.kind for one in records}) > 1:
            return None
        chosen = records[-1]
        # No message about damage has a severity in it, but that of another server's refusal.
        if chosen.kind and (self._in_a_name(place) or self._goes_on(chosen)):
            return None
        return chosen

    def _readings(self, line: str) -> list[Reading]:
        for prefix in self._prefixes:
            if found := prefix.readings(line):
                return found
        return []

    def _begins(self, line: str) -> bool:
        return any(prefix.begins(line) for prefix in self._prefixes)

    def _completes(self, place: int, readings: Sequence[Reading]) -> bool:
        """Return whether a line is, or at the start of the text may be, a further one (DETAIL, STATEMENT) of a record."""
        further = {one.key: one.rank for one in readings if one.rank}
        if len(further) in (0, len(readings)):
            return bool(further)
        for before in range(place - 1, -1, -1):
            if not _continues(self._lines[before]):
                return any(
                    one.rank < further.get(one.key, 0)
                    for one in self._readings(self._lines[before])
                )
        return True

    def _narrowed(
        self, place: int, readings: list[Reading]
    ) -> tuple[list[Reading], dict[str, str]]:
        """Return the readings whose prefix the next lines of the record repeat, and those lines by their title."""
        more: dict[str, str] = {}
        rank = 0
        title = ""
        for line in self._lines[place + 1 : place + 200]:
            if _continues(line):
                if title:
                    more[title] += f"\n{line[1:]}"
                continue
            next_ = {one.key: one for one in self._readings(line) if one.rank > rank}
            fitting = [one for one in readings if one.key in next_]
            if not fitting:
                break
            readings = fitting
            one = next_[readings[-1].key]
            rank, title = one.rank, one.severity
            more[title] = one.message
        return readings, more

    def _in_a_name(self, place: int) -> bool:
        """Return whether the line is in the name of a role or database, which may have line breaks.

        What follows such a line is the rest of the real record: it repeats the name in its message, or
        it has a severity but does not begin as a record.
        """
        if not any(prefix.has_names for prefix in self._prefixes):
            return False
        line = self._lines[place]
        following = self._lines[place + 1 : place + 12]
        for rest, next_ in enumerate(following):
            if _continues(next_):
                continue
            if self._begins(next_):
                break
            if _SEVERITY.search(next_):
                return True
        else:
            return False
        after = [one for one in self._readings(next_) if not one.rank]
        _, refused, message = next_.partition("FATAL:  ")
        if not after or not refused:
            # A line of the same name may be next.
            kinds = [_record(next_, one, {}).kind for one in after]
            return any(kinds) and self._in_a_name(place + 1 + rest)
        # No real line is repeated by the refusal of a login right after it.
        head = max(len(one.head) for one in self._readings(line))
        more = list(takewhile(_continues, following[rest + 1 :]))
        return any(
            line[head:].startswith(name) for name in _QUOTED.findall(message)
        ) or any(start in one for one in more for start in (line[:40], next_[:34]))

    def _goes_on(self, record: Record) -> bool:
        """Return whether the line goes on with another severity: it was in a name, up to there."""
        return (
            any(prefix.has_names for prefix in self._prefixes)
            and record.kind != "removed WAL"
            and _SEVERITY.search(record.message) is not None
        )

    def evidence(self) -> str:
        """Return all lines, with the names that a client chose behind the severity and the message."""
        return "\n".join(map(self._shown, range(len(self._lines))))

    def _shown(self, place: int) -> str:
        line = self._lines[place]
        if not self._prefixes or not line or _continues(line):
            return line
        readings = self._readings(line)
        if not readings or self._in_a_name(place):
            return f"\t{line}"  # as a further line of a message
        further = self._completes(place, readings)
        readings = [one for one in readings if bool(one.rank) is further]
        one = self._narrowed(place, readings)[0][-1]
        if self._goes_on(_record(line, one, {})):
            return f"\t{line}"
        if not one.client:
            return line
        start = len(line) - len(one.message) - len(f"{one.severity}:  ")
        names = line[len(one.head) : start].strip()
        return f"{one.head}{one.severity}:  {one.message}  (client: {names})"


_QUOTED = re.compile(r'"([^"\n]{5,})')


def _continues(line: str) -> bool:
    return line.startswith("\t")


def _record(line: str, reading: Reading, more: Mapping[str, str]) -> Record:
    return Record(
        reading.severity,
        _without_state(reading.message)[:4000],
        line,
        state=reading.names.get("state", "") or _state(reading.message),
        client=reading.client,
        context=more.get("CONTEXT", ""),
        statement="STATEMENT" in more,
        database=reading.names.get("database", ""),
        role=reading.names.get("role", ""),
        application=reading.names.get("application", ""),
    )


_ERROR_FIELD = re.compile('[,"](?:ERROR|FATAL)[,"]')
_ERRORS = re.compile("(?:ERROR|FATAL|PANIC):  ")
_VERBOSE = re.compile(r"([0-9A-Z]{5}): ")


def _state(message: str) -> str:
    """Return the SQLSTATE that log_error_verbosity = verbose puts before a message."""
    found = _VERBOSE.match(message)
    return found[1] if found else ""


def _without_state(message: str) -> str:
    return _VERBOSE.sub("", message, count=1) if _state(message) else message


def guess(line: str) -> Record | None:
    """Return the record of a line whose prefix is not known: the last severity outside of quotes counts.

    Names stand before the severity and messages quote what clients wrote. A logged statement is a
    client's to its end.
    """
    if line[:1].isspace():
        return None
    chosen = None
    for found in _SEVERITY.finditer(line, 0, 2000):
        if found.start() and not (line[found.start() - 1] in " ]:@>|)"):
            continue
        if chosen is not None:
            between = line[chosen.end() : found.start()]
            if between.count('"') % 2 or between.count("'") % 2:
                continue
            if chosen[2] or _LOGGED.match(line, chosen.end()):
                break
        chosen = found
    if chosen is None or chosen[2]:
        return None
    message = line[chosen.end() : 4000]
    return Record(chosen[1], _without_state(message), line, state=_state(message))


_LOGGED = re.compile(r"(?:statement|execute .{1,80}|duration: \S+ ms .{1,80}): ")


def kind_of(line: str, prefix: LinePrefix | None = None) -> str | None:
    """Return the kind of crash or damage that a line of a log in plain text reports, or None."""
    record = TextLog(line, [prefix] if prefix else []).record(0)
    return record.kind if record else None


# ------------------------------------------------------------------ csvlog and jsonlog

_CSV_FIELD = re.compile(r'("[^"]*(?:""[^"]*)*"|[^",\n]*)(?:,|\r?\n|$)')
_CSV_START = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ [^,]*,")


def split_csv(text: str) -> list[str]:
    """Return the records of a csvlog; the last is not complete if it has an odd number of quotes."""
    records, open_ = [], ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        open_ += line
        if open_.count('"') % 2 == 0:
            records.append(open_)
            open_ = ""
    return [*records, open_] if open_ else records


def structured_records(
    text: str, format_: str, *, telling: bool = True
) -> Iterator[Record]:
    """Yield the records of a csvlog or jsonlog; with `telling` those that may be errors, crashes or damage."""
    parse = _json_record if format_ == "jsonlog" else _csv_record
    for part in text.split("\n") if format_ == "jsonlog" else split_csv(text):
        if not telling or _TELLING.search(part) or _ERROR_FIELD.search(part):
            record = parse(part)
            if record is not None:
                yield record


def _csv_record(text: str) -> Record | None:
    if not _CSV_START.match(text):
        return None
    fields: list[str] = []
    place = 0
    while place < len(text) and len(fields) < 26:
        field = _CSV_FIELD.match(text, place)
        if field is None or field.end() == place:
            return None
        value = field[1]
        fields.append(value[1:-1].replace('""', '"') if value[:1] == '"' else value)
        place = field.end()
    if len(fields) < 23 or not fields[3].isdigit():
        return None
    fields += [""] * (26 - len(fields))
    return Record(
        fields[11],
        fields[13][:4000],
        f"{fields[0]} [{fields[3]}] {fields[11]}:  {fields[13]}",
        state=fields[12],
        detail=fields[14],
        client=bool(fields[4]) or fields[23] == "client backend",
        context=fields[18],
        statement=bool(fields[19]),
        database=fields[2],
        role=fields[1],
        application=fields[22],
    )


def _json_record(text: str) -> Record | None:
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("error_severity"), str):
        return None

    def field(name: str) -> str:
        value = found.get(name)
        return "" if value is None else str(value)

    return Record(
        field("error_severity"),
        field("message")[:4000],
        f"{field('timestamp')} [{field('pid')}] {field('error_severity')}:  {field('message')}",
        state=field("state_code"),
        detail=field("detail"),
        client="remote_host" in found or field("backend_type") == "client backend",
        context=field("context"),
        statement="statement" in found,
        database=field("dbname"),
        role=field("user"),
        application=field("application_name"),
    )
