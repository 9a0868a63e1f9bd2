"""Each wrong setting ends a real process with one line that names it and what to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .cli import refused

CORE = ("db", "status")
SUBJECTS = ("monitor", "--once")


@dataclass(frozen=True)
class Wrong:
    """A settings file (or variables) that is wrong, and what the line must have."""

    name: str
    said: tuple[str, ...]
    yaml: str | bytes | None = None
    env: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = CORE


def _host(extra: str) -> str:
    return f"subjects:\n- {{name: box, kind: host, {extra}}}\n"


WRONG = [
    Wrong(
        "unknown setting",
        ("agent.concurency: unknown setting", "did you mean concurrency?"),
        "agent: {concurency: 2}",
    ),
    Wrong(
        "wrong type",
        ("agent.concurrency: 'many' is not a whole number", "Calls in flight"),
        "agent: {concurrency: many}",
    ),
    Wrong(
        "wrong unit",
        ("monitor.interval: '10 parsecs' is not a duration", "30s, 5m"),
        "monitor: {interval: 10 parsecs}",
    ),
    Wrong(
        "out of range",
        ("agent.max_attempts: 0 is too small; use 1 or more",),
        "agent: {max_attempts: 0}",
    ),
    Wrong("bad YAML", ("midwatch.yaml is not valid YAML", "line 1"), "agent: {"),
    Wrong("no text", ("midwatch.yaml is not valid YAML",), b"\xff\xfe\x00"),
    Wrong("no mapping", ("midwatch.yaml must hold names and values",), "- 1"),
    Wrong(
        "unknown variable in the file",
        ("database: the environment has no DB_URL", "set DB_URL"),
        "database: ${DB_URL}",
    ),
    Wrong(
        "misspelt variable",
        ("MIDWATCH_AGENT__POLL_INTERVALL", "did you mean poll_interval?"),
        env={"MIDWATCH_AGENT__POLL_INTERVALL": "5s"},
    ),
    Wrong(
        "wrong value in a variable",
        (
            "MIDWATCH_AGENT__POLL_INTERVAL (agent.poll_interval): 'soon' is not a duration",
        ),
        env={"MIDWATCH_AGENT__POLL_INTERVAL": "soon"},
    ),
    Wrong(
        "a group in a variable",
        ("MIDWATCH_AGENT: is not valid JSON",),
        env={"MIDWATCH_AGENT": "poll_interval=5s"},
    ),
    Wrong(
        "missing file",
        ("there is no settings file /nowhere/midwatch.yaml", "MIDWATCH_CONFIG"),
        env={"MIDWATCH_CONFIG": "/nowhere/midwatch.yaml"},
    ),
    Wrong(
        "no database URL",
        ("database: ", "sqlite:///FILE or postgresql://"),
        "database: midwatch.db",
    ),
    Wrong(
        "unknown database",
        ("database: mysql is not a supported database", "sqlite:///FILE"),
        "database: mysql://user:hunter2@host/db",
    ),
    Wrong(
        "nothing to watch",
        ("subjects: no subject is configured", "name a system"),
        command=SUBJECTS,
    ),
    Wrong(
        "wrong kind",
        ("subjects[0].kind: 'hots' is not a kind of subject", "host"),
        "subjects: [{name: box, kind: hots}]",
        command=SUBJECTS,
    ),
    Wrong(
        "two of one name",
        ("subjects[1].name: box is also the name of subjects[0]", "a name of its own"),
        "subjects: [{name: box, kind: host}, {name: box, kind: host}]",
        command=SUBJECTS,
    ),
    Wrong(
        "unknown setting of a kind",
        ("subjects[0].mount: unknown setting", "did you mean mounts?"),
        _host("mount: [/]"),
        command=SUBJECTS,
    ),
    Wrong(
        "unknown invariant",
        ("subjects.box.invariants.dsik: ", "did you mean disk?"),
        _host("invariants: {dsik: {limit: 95%}}"),
        command=SUBJECTS,
    ),
    Wrong(
        "limit in the wrong unit",
        ("subjects.box.invariants.disk.limit: ", "90% or 0.9"),
        _host("invariants: {disk: {limit: 10s}}"),
        command=SUBJECTS,
    ),
]


WRONG += [
    Wrong(
        "a line that may hold a password",
        ("is not valid YAML: line 2, column 17: there is a second ':'",),
        "log:\n  level: hunter2: x\n",
    ),
    Wrong(
        "a group given twice",
        ("line 2, column 1: agent is given twice, first in line 1",),
        "agent: {concurrency: 2}\nagent: {concurrency: 3}\n",
    ),
    Wrong(
        "a group given twice in a variable",
        ("MIDWATCH_AGENT: the member 'concurrency' is given twice",),
        env={"MIDWATCH_AGENT": '{"concurrency": 1, "concurrency": 2}'},
    ),
    Wrong(
        "an anchor in itself",
        ("as an alias it refers to itself or to nothing",),
        "subjects: &all [*all]\n",
    ),
    Wrong(
        "anchors that explode",
        ("too large once its aliases are expanded",),
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
        ),
    ),
    Wrong("deep nesting", ("nested deeper than 60",), "subjects: " + "[" * 9000),
    Wrong(
        "deep nesting in a variable",
        ("MIDWATCH_SUBJECTS: is nested too deeply to be read",),
        env={"MIDWATCH_SUBJECTS": "[" * 50_000},
    ),
    Wrong(
        "5,000 digits",
        ("line 1, column 22: too long a number",),
        f"agent: {{concurrency: {'9' * 5000}}}",
    ),
    Wrong(
        "5,000 digits in a variable",
        ("MIDWATCH_AGENT: has too long a number",),
        env={"MIDWATCH_AGENT": f'{{"concurrency": {"9" * 5000}}}'},
    ),
    Wrong(
        "5,000 hexadecimal digits",
        ("too long a number",),
        f"agent: {{concurrency: 0x{'f' * 5000}}}",
    ),
    Wrong(
        "a number that no float has",
        ("monitor.interval: 999", "is not a duration"),
        f"monitor: {{interval: {'9' * 390}}}",
    ),
    Wrong(
        "a duration that no date has",
        ("monitor.group_wait: '1e300' is longer than 100 years",),
        "monitor: {group_wait: '1e300'}",
    ),
    Wrong(
        "an impossible date",
        ("midwatch.yaml is not valid YAML: line 1, column 11: the value does not fit",),
        "database: !!timestamp 2026-13-45\n",
    ),
    Wrong(
        "an impossible date in place of a number",
        ("agent.concurrency: '2026-13-45' is not a whole number",),
        "agent: {concurrency: 2026-13-45}",
    ),
    Wrong(
        "a port of the database out of range",
        ("database: the port is not a number from 1 to 65535",),
        "database: postgresql://u:hunter2@127.0.0.1:99999/d",
    ),
    Wrong(
        "a port of the database out of range in a variable",
        ("database: the port is not a number from 1 to 65535",),
        env={"MIDWATCH_DATABASE": "postgresql://u:hunter2@127.0.0.1:70000/d"},
    ),
    Wrong(
        "a port of a DSN out of range",
        ("subjects.db.dsn: the port is not a number from 1 to 65535",),
        "subjects: [{name: db, kind: postgres, dsn: 'host=h port=1,99999 password=hunter2'}]",
        command=SUBJECTS,
    ),
    Wrong(
        "a port that is a password",
        ("subjects[0].url: the port is not a number from 1 to 65535",),
        "subjects: [{name: shop, kind: http, url: 'http://h:hunter2/'}]",
        command=SUBJECTS,
    ),
    Wrong(
        "a port of Prometheus out of range",
        ("subjects[0].url: the port is not a number from 1 to 65535",),
        "subjects: [{name: p, kind: prometheus, url: 'http://u:hunter2@h:65536'}]",
        command=SUBJECTS,
    ),
    Wrong(
        "a port of the content proxy out of range",
        ("operator.content_url: the port is not a number from 1 to 65535",),
        "operator: {content_url: 'http://u:hunter2@h:0'}",
    ),
    Wrong(
        "a share in percent without its sign",
        ("disk.limit: 90.0 would be 9,000%; use 90% or 0.9",),
        _host("invariants: {disk: {limit: 90}}"),
        command=SUBJECTS,
    ),
]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each of them says, from processes that run side by side."""

    def run(wrong: Wrong, folder: Path) -> str:
        if wrong.yaml is not None:
            text = wrong.yaml if isinstance(wrong.yaml, bytes) else wrong.yaml.encode()
            (folder / "midwatch.yaml").write_bytes(text)
        return refused(folder, *wrong.command, env=wrong.env, code=2)

    folders = [tmp_path_factory.mktemp("wrong") for _ in WRONG]
    with ThreadPoolExecutor(3) as pool:
        said = pool.map(run, WRONG, folders)
        return {wrong.name: line for wrong, line in zip(WRONG, said, strict=True)}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_setting_is_one_line(lines: dict[str, str], wrong: Wrong) -> None:
    line = lines[wrong.name]
    assert line.startswith("midwatch: ") and "hunter2" not in line
    assert not [part for part in wrong.said if part not in line], line
