"""The log parser against any prefix, name and statement: a client neither forges a line nor hides one."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.subjects.postgres.log_lines import (
    KINDS,
    LinePrefix,
    Record,
    TextLog,
    kind_of,
    split_csv,
    structured_records,
)

# ------------------------------------------------------------------ a server that writes a log

DISASTERS = (
    ("PANIC", 'could not write to file "pg_wal/x": No space left on device', "panic"),
    (
        "ERROR",
        'could not extend file "base/1/2": No space left on device',
        "disk full",
    ),
    ("FATAL", "out of memory", "out of memory"),
    ("ERROR", 'invalid page in block 3 of relation "base/1/2"', "damaged data"),
)
HARMLESS = (
    ("ERROR", "syntax error at or near {}"),
    ("ERROR", 'relation "{}" does not exist'),
    ("WARNING", "there is no transaction in progress"),
    ("LOG", "statement: {}"),
)
SERVER = {"t": "2026-01-01 00:00:00 UTC", "m": "2026-01-01 00:00:00.123 UTC"}
SERVER |= {"p": "77", "c": "6b0b76bc.4efc", "x": "0", "e": "XX000", "Q": "-5"}

names = st.one_of(
    st.sampled_from(
        ["app", "PANIC:  x", " PANIC:  x", "x PANIC:  out", "x LOG:  y", "@", "%u"]
        + ["ERROR:  out of memory", "x STATEMENT:  y", "a@b LOG:  c", "[7] FATAL:  z"]
    ),
    st.text(st.characters(codec="ascii", categories=["L", "P", "Z"]), min_size=1)
    .filter(str.strip)
    .map(lambda name: name[:63]),
)
prefixes = st.one_of(
    st.sampled_from(
        ["%m [%p] ", "%m [%p] %q%u@%d ", "%m [%p] app=%a ", "%t:%r:%u@%d:[%p]: "]
        + ["%t [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ", "", "%a ", "%-20a %5p "]
    ),
    st.lists(
        st.sampled_from(["%m", "%p", "%l", "%u", "%d", "%a", "%h", "%e", "%%", "%q"]),
        max_size=6,
    ).map(lambda parts: " ".join(["%t", *parts, ""])),
)


def written(
    template: str, line: int, client: Mapping[str, str] | None, syslog: str = ""
) -> str:
    """Return the prefix as the server writes it for a session, or for its own process."""
    out, place = syslog, 0
    while place < len(template):
        letter = template[place]
        place += 1
        if letter != "%":
            out += letter
            continue
        width = ""
        while template[place] in "-0123456789":
            width += template[place]
            place += 1
        letter = template[place]
        place += 1
        if letter == "q" and client is None:
            break
        value = {"%": "%", "q": "", "l": str(line)} | SERVER | dict(client or {})
        text = value.get(letter, "")
        out += (
            (text.ljust(-int(width)) if width[:1] == "-" else text.rjust(int(width)))
            if width
            else text
        )
    return out


def message(
    template: str,
    client: Mapping[str, str] | None,
    severity: str,
    text: str,
    statement: str = "",
) -> str:
    lines = [(severity, text)]
    if statement:
        lines.append(("STATEMENT", statement))
    return "".join(
        written(template, number, client)
        + f"{title}:  "
        + what.replace("\n", "\n\t")
        + "\n"
        for number, (title, what) in enumerate(lines, 1)
    )


def kinds(text: str, template: str) -> list[str | None]:
    return [one.kind for one in TextLog(text, [LinePrefix(template)]).records()]


clients = st.fixed_dictionaries(
    {
        "u": names,
        "d": names,
        "a": names,
        "h": st.just("10.0.0.1"),
        "r": st.just("10.0.0.1(5)"),
    }
)


@settings(max_examples=400)
@given(prefixes, clients, st.sampled_from(HARMLESS), names, names)
def test_no_client_forges_a_line(
    template: str,
    client: dict[str, str],
    harmless: tuple[str, str],
    first: str,
    second: str,
) -> None:
    severity, text = harmless
    sql = f"select '{first}' -- {second}\nPANIC:  {second}"
    statement = "" if severity == "LOG" else sql
    log = message(template, client, severity, text.format(first), statement)
    assert [kind for kind in kinds(log, template) if kind] == []


@settings(max_examples=400)
@given(prefixes, clients, st.sampled_from(DISASTERS), st.just("app"), names)
def test_no_client_hides_a_line(
    template: str,
    client: dict[str, str],
    disaster: tuple[str, str, str],
    other: str,
    sql: str,
) -> None:
    severity, text, kind = disaster
    noise = message(template, {**client, "a": other}, "ERROR", "x", f"select {sql}")
    log = noise + message(template, client, severity, text, f"insert {sql}") + noise
    assert [one for one in kinds(log, template) if one] == [kind]


HEAD = "2026-01-01 00:00:00.123 UTC [77] "
broken_names = st.tuples(
    st.sampled_from(["x", "x@d LOG:  a", "LOG:  a", "x@d FATAL:  a", "", "x@y"]),
    st.sampled_from(["\n", "\n\n", "\n\t", "\r\n"]),
    st.sampled_from(["PANIC:  x", f"{HEAD}PANIC:  x", f"{HEAD}b@c PANIC:  x"]),
    st.sampled_from(["", "\n", f"\n{HEAD}", " FATAL:  y"]),
).map("".join)


@settings(max_examples=400)
@given(
    st.sampled_from(["%m [%p] %q%u@%d ", "%m [%p] %u %d ", "%m [%p] %d:%u: "]),
    broken_names | names,
    broken_names | names,
    st.sampled_from(["role", "database", "password"]),
)
def test_a_line_break_in_a_name_forges_no_line(
    template: str, user: str, database: str, refusal: str
) -> None:
    client = {"u": user[:63], "d": database[:63]}
    if refusal != "role":  # a role that exists can ask for any database
        client["u"] = "postgres"
    text = {
        "role": f'role "{client["u"]}" does not exist',
        "database": f'database "{client["d"]}" does not exist',
        "password": 'password authentication failed for user "postgres"',
    }
    log = message(template, client, "FATAL", text[refusal])
    if refusal == "password":
        detail = 'Connection matched file "pg_hba.conf" line 4: "host all all scram"'
        log += message(template, client, "DETAIL", detail)
    log += f"{HEAD}LOG:  checkpoint starting: time\n"
    assert [kind for kind in kinds(log, template) if kind] == []


@given(prefixes)
def test_the_servers_own_processes_report_a_crash(template: str) -> None:
    crash = "server process (PID 7) was terminated by signal 9: Killed"
    log = message(template, None, "LOG", crash)
    assert kinds(log, template) == ["crash"]
    client = {"u": "app", "d": "db", "a": "psql", "h": "::1", "r": "::1(5)"}
    raised = message(template, client, "LOG", crash, "do $$ raise log $$")
    assert [kind for kind in kinds(raised, template) if kind] == []


@given(st.text(), st.one_of(prefixes, st.text()), st.text(max_size=80))
def test_no_text_and_no_prefix_is_too_strange(
    text: str, template: str, more: str
) -> None:
    log = TextLog(f"{text}\nPANIC:  {more}\n{text}", [LinePrefix(template)])
    list(log.records())
    assert log.evidence().count("\n") == text.count("\n") * 2 + 2 + more.count("\n")
    for format_ in ("csvlog", "jsonlog"):
        list(structured_records(f"PANIC{text}\n{more}", format_))


# ------------------------------------------------------------------ structured logs


def csv_field(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if value else ""


def csv_line(
    severity: str, text: str, name: str, statement: str, state: str = "XX000"
) -> str:
    start = "2026-01-01 00:00:00.123 UTC"
    fields = [start, csv_field(name), csv_field(name), "77", '"[local]"', "a.b", "1"]
    fields += ['"SELECT"', "2026-01-01 00:00:00 UTC", "1/2", "0", severity, state]
    fields += [csv_field(text), "", "", "", "", "", csv_field(statement), "", ""]
    return ",".join([*fields, csv_field(name), '"client backend"', "", "0"]) + "\n"


def json_line(
    severity: str, text: str, name: str, statement: str, state: str = "XX000"
) -> str:
    found = {"timestamp": "x", "user": name, "dbname": name, "pid": 77}
    found |= {"error_severity": severity, "state_code": state, "message": text}
    found |= {"statement": statement, "application_name": name}
    return json.dumps(found, ensure_ascii=False) + "\n"


@given(
    st.lists(
        st.tuples(st.sampled_from((*DISASTERS, *HARMLESS)), st.text(), st.text()),
        max_size=4,
    ),
    st.sampled_from(["csvlog", "jsonlog"]),
)
def test_a_structured_log_cannot_be_forged(
    events: list[tuple[tuple[str, ...], str, str]], format_: str
) -> None:
    write = csv_line if format_ == "csvlog" else json_line
    forged = "\nPANIC:  x\n" + csv_line("PANIC", "x", "a", "b") + '{"PANIC": "'
    events = [(event, name, sql + forged) for event, name, sql in events]
    log = "".join(write(e[0], e[1], name, sql) for e, name, sql in events)
    found = [one.kind for one in structured_records(log, format_) if one.kind]
    assert found == [event[2] for event, _, _ in events if len(event) == 3]
    if format_ == "csvlog":
        assert "".join(split_csv(log)) == log


@pytest.mark.parametrize("write", [csv_line, json_line])
@pytest.mark.parametrize(
    ("severity", "text", "state", "kind"),
    [
        ("ERROR", "Speicher aufgebraucht", "53200", "out of memory"),
        ("FEHLER", "Block 3 der Relation ist ungültig", "XX001", "damaged data"),
        ("PANIK", "es ist schlimm", "XX000", "panic"),
        ("LOG", "Hinweis", "53100", None),
    ],
)
def test_a_code_says_the_same_in_each_language(
    write: object, severity: str, text: str, state: str, kind: str | None
) -> None:
    assert callable(write)
    format_ = "csvlog" if write is csv_line else "jsonlog"
    log = write(severity, text, "app", "select 1", state)
    found = [one.kind for one in structured_records(log, format_)]
    assert (found or [None]) == [kind]


# ------------------------------------------------------------------ kinds


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ERROR:  invalid page in block 3 of relation base/1/2", "damaged data"),
        (
            'ERROR:  3 invalid pages among blocks 3..5 of relation "base/5/16384"',
            "damaged data",
        ),
        (
            'WARNING:  zeroing out 2 invalid pages among blocks 3..5 of relation "x"',
            "damaged data",
        ),
        (
            'WARNING:  ignoring 2 checksum failures among blocks 3..5 of relation "x"',
            "damaged data",
        ),
        (
            "LOG:  page verification failed, calculated checksum 1 but expected 2",
            "damaged data",
        ),
        (
            'ERROR:  could not read blocks 3..5 in file "base/1/2": read only 0 of 8192 bytes',
            "damaged data",
        ),
        (
            "LOG:  could not fork new process for connection: Cannot allocate memory",
            "out of memory at fork",
        ),
        (
            "LOG:  could not fork autovacuum worker process: Cannot allocate memory",
            "out of memory at fork",
        ),
        (
            'LOG:  could not fork "client backend" process: Resource temporarily unavailable',
            "process limit",
        ),
        (
            'ERROR:  could not resize shared memory segment "/PostgreSQL.1" to 8 bytes: No space left on device',
            "shared memory full",
        ),
        ("ERROR:  out of shared memory", "shared memory full"),
        (
            "FATAL:  could not map anonymous shared memory: Cannot allocate memory",
            "shared memory full",
        ),
        (
            'ERROR:  could not extend file "base/1/2": Disk quota exceeded',
            "disk quota",
        ),
        (
            'ERROR:  could not write to file "base/pgsql_tmp/x": Disk quota exceeded',
            "disk quota",
        ),
        (
            'ERROR:  could not extend file "base/1/2": wrote only 4096 of 8192 bytes at block 3',
            "disk full",
        ),
        (
            "ERROR:  could not write to log file 1 at offset 2: Input/output error",
            "disk error",
        ),
        (
            "ERROR:  requested WAL segment 000000010000000000000003 has already been removed",
            "removed WAL",
        ),
        (
            "FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment "
            "000000010000000000000003 has already been removed",
            "removed WAL",
        ),
        (
            "LOG:  database system was interrupted while in recovery at log time 2026-01-01",
            "crash",
        ),
        ("ERROR:  53200: out of memory", "out of memory"),
        ("ERROR:  XX001: something new is wrong with page 7", "damaged data"),
        ("ERROR:  canceling statement due to lock timeout", None),
        ("LOG:  could not receive data from client: Connection reset by peer", None),
        ("LOG:  database system was interrupted; last known up at 2026-01-01", None),
        ("WARNING:  out of memory is a word", None),
    ],
)
def test_each_kind_of_crash_and_damage(line: str, kind: str | None) -> None:
    prefix = "2026-01-01 00:00:00.000 UTC [7] "
    assert kind_of(prefix + line, LinePrefix("%m [%p] ")) == kind
    assert kind_of(prefix + line) == kind
    assert kind is None or kind in KINDS


def test_a_line_cannot_take_long() -> None:
    for template in ("%m [%p] %q%u@%d %a ", "%m [%p] %u %d %a %h %i "):
        for text in (
            "@ PANIC:  x ",
            "@ @ @ PANIC:  ",
            "@@@ @@@ @ LOG:  ",
            "\\x PANIC:  ",
        ):
            line = "2026-01-01 00:00:00.000 UTC [7] " + text * 4_000 + "[7]"
            begun = time.process_time()
            list(TextLog(line, [LinePrefix(template)]).records())
            assert time.process_time() - begun < 10


def test_a_real_error_within_a_function_counts() -> None:
    record = Record("ERROR", "out of memory", context="PL/pgSQL function f() line 3 at SQL statement")  # fmt: skip
    assert record.kind == "out of memory"
    raised = Record("ERROR", "out of memory", context="PL/pgSQL function f() line 3 at RAISE\nmore")  # fmt: skip
    assert raised.kind is None
    named = Record("ERROR", "out of memory", context='PL/pgSQL function "f line 3 at RAISE\n"() line 3 at SQL statement\nPL/pgSQL function g() line 5 at RAISE')  # fmt: skip
    assert named.kind == "out of memory"
