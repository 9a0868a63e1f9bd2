"""The kind `logs`: files that are rotated, truncated, unreadable or no logs, and what their lines say."""

from __future__ import annotations

import bz2
import errno
import glob
import gzip
import importlib
import itertools
import json
import lzma
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from midwatch.model import Json, Observation
from midwatch.subjects.logs import LogsSubject
from midwatch.subjects.logs.wildcards import matching
from midwatch.testing.subject_conformance import check_kind

from ..waiting import PATIENCE

zstd = importlib.import_module(
    "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
)


def subject(*files: object, **settings: object) -> LogsSubject:
    """A subject with one source, `api`."""
    source = settings.pop("source", {})
    assert isinstance(source, dict)
    given: dict[str, Any] = {
        "name": "shop-logs",
        "timeout": PATIENCE,
        "sources": [{"name": "api", "files": [*map(str, files)], **source}],
        **settings,
    }
    return LogsSubject(LogsSubject.settings_model.model_validate(given))


class Watch:
    """Observes a subject again and again, and keeps its state as the monitor does."""

    def __init__(self, *files: object, **settings: object) -> None:
        self.subject = subject(*files, **settings)
        self.state: Json = {}

    async def __call__(self) -> Observation:
        found = await self.subject.observe(self.state)
        self.state = found.state
        return found

    def end_storms(self) -> None:
        """Let the time of the lines that were counted be over."""
        for shape in self.state["sources"]["api"]["shapes"]:
            shape["series"] = shape["series"][-1:]

    async def errors(self) -> int:
        """Observe, and return how many errors were counted so far."""
        await self()
        shapes = self.state["sources"]["api"]["shapes"]
        return sum(int(one["series"][-1][1]) for one in shapes)


def line(number: int) -> str:
    return f"2026-05-03 12:00:01 ERROR order {number} cannot be stored\n"


def lines(count: int, start: int = 0) -> str:
    return "".join(map(line, range(start, start + count)))


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


async def test_a_storm_of_one_shape_is_one_violation(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text(lines(500))
    check_kind(LogsSubject)
    watch = Watch(log)
    first = await watch()
    assert not first.signals and "error_storm" in first.covered
    append(log, "2026-05-03 12:00:01 INFO started\n" + lines(100))
    found = await watch()
    [storm] = [one for one in found.signals if one.invariant == "error_storm"]
    assert storm.component == "api: ERROR: order # cannot be stored"
    assert storm.holds is False and storm.facts["count"] == 100
    assert storm.facts["file"] == str(log)
    assert "100 errors of one shape within 5m" in storm.message


# ------------------------------------------------------------------ long lines

FRAMES = "".join(f"\n\tat shop.Order.save(Order.java:{n})" for n in range(1, 10_000))
TRACE = f'java.lang.IllegalStateException: [ERROR] "level":"error"{FRAMES}'
PART = 16_384  # bytes after which Docker and containerd begin another line


def docker(text: str) -> str:
    return json.dumps({"log": text, "stream": "stderr", "time": STAMP}) + "\n"


STAMP = "2026-05-03T12:00:01.5Z"
FORMS: dict[str, Callable[[str, bool], str]] = {
    "plain": lambda text, last: text + "\n" * last,
    "cri": lambda text, last: f"{STAMP} stderr {'PF'[last]} {text}\n",
    "docker": lambda text, last: docker(text + "\n" * last),
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_long_line_of_json_is_read_in_any_order(
    tmp_path: Path, form: str
) -> None:
    """A stack trace, or a body, before the level or the message of a line hides neither, and makes no error of an info line."""
    log = tmp_path / "api.log"
    log.write_text("".join(FORMS[form](one, True) for one in ("started", "ready")))
    watch = Watch(log)
    await watch()

    def write(*members: tuple[str, object]) -> None:
        text = json.dumps(dict(members))
        parts = [text[at : at + PART] for at in range(0, len(text), PART)]
        last = len(parts) - 1
        append(log, "".join(FORMS[form](p, n == last) for n, p in enumerate(parts)))

    body, expected = "all is well " * 9_000, {}
    for name, text in (
        ("short", TRACE[:3000]),
        ("long", TRACE[:120_000]),
        ("body", body),
    ):
        for number, level in enumerate(("ERROR", "INFO", "fatal")):
            members = [
                ("level", level),
                ("message", f"{name} {level} {number}"),
                ("stack_trace", text),
            ]
            for order in itertools.permutations(members):
                write(*order)
            if level != "INFO":
                expected[f"{name} {level} #"] = 6
    endless = TRACE * 3  # more than is read
    error = {"message": "no stock", "stack": endless}
    write(("level", "error"), ("error", error))
    write(("level", "info"), ("error", error))
    write(("message", body.replace("well", "well, no error,") * 3), ("level", 30))
    expected["no stock"] = 1
    await watch()
    shapes = watch.state["sources"]["api"]["shapes"]
    assert {one["text"]: int(one["series"][-1][1]) for one in shapes} == expected


async def test_lines_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("")
    watch = Watch(log)
    await watch()
    thread = f'{{"error":null,"thread":"{"x" * 1900}"'
    words = "x" * 450
    said = [
        *(f'{thread},"level":"info","msg":"fine"}}', '<14>shop: {"msg":"no disk"}'),
        *(f'{thread},"level":"error","msg":"no {one}"}}' for one in ("cpu", "net")),
        *(f"2026 ERROR {words} no {one}" for one in ("cpu", "net")),
        *('{"error":0,"log":"<14>no fan"}', '{"error":0,"log":"<11>no fan"}'),
        '<11>shop: {"msg":"no disk"}',
        '2026-05-03 12:00:01 {"level":"info","error":0}',
        '2026-05-03 12:00:01 {"level":"error","msg":"no mail"}',
    ]
    ends = ["no cpu", "no net", f"{words} no cpu", f"{words} no net"]
    for count, text in enumerate((said, said[::-1]), 1):
        append(log, "".join(f"{one}\n" for one in text))
        await watch()
        shapes = watch.state["sources"]["api"]["shapes"]
        found = {one["text"]: int(one["series"][-1][1]) for one in shapes}
        told = [*ends, "no disk", "no mail", "<#>no fan"]
        assert found == dict.fromkeys(told, count)


# ------------------------------------------------------------------ rotation


def rename(log: Path) -> None:
    """Rotate as logrotate does by default: older ones move on, and the writer opens a new file."""
    for number in range(8, 0, -1):
        for suffix in ("", ".gz", ".xz", ".bz2", ".zst"):
            old = log.with_name(f"{log.name}.{number}{suffix}")
            if old.exists():
                old.rename(log.with_name(f"{log.name}.{number + 1}{suffix}"))
    log.rename(log.with_name(f"{log.name}.1"))
    log.touch()


def copytruncate(log: Path) -> None:
    shutil.copy2(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)


def compress(path: Path, suffix: str = ".gz") -> None:
    """Compress as gzip and its like do: the time of the file stays."""
    info = path.stat()
    packed = path.with_name(path.name + suffix)
    opened: Callable[..., Any] = {
        ".gz": gzip.open,
        ".xz": lzma.open,
        ".bz2": bz2.open,
        ".zst": zstd.open,
    }[suffix]
    with opened(packed, "wb") as file:
        file.write(path.read_bytes())
    os.utime(packed, ns=(info.st_atime_ns, info.st_mtime_ns))
    path.unlink()


async def test_no_line_is_lost_or_counted_twice_by_rotation(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text(lines(3))
    watch = Watch(tmp_path / "*.log")
    assert await watch.errors() == 0
    total = 0
    steps: list[Callable[[], None]] = [
        lambda: None,
        lambda: rename(log),
        lambda: copytruncate(log),
        lambda: (rename(log), append(log, lines(5)), rename(log))[0],
        lambda: (rename(log), compress(log.with_name("api.log.1")))[0],
        lambda: (rename(log), compress(log.with_name("api.log.1"), ".xz"))[0],
        lambda: (copytruncate(log), compress(log.with_name("api.log.1"), ".bz2"))[0],
        lambda: (rename(log), compress(log.with_name("api.log.1"), ".zst"))[0],
        lambda: (rename(log), compress(log.with_name("api.log.1"), ".zst"))[0],
    ]
    for number, rotate in enumerate(steps):
        append(log, lines(10, 20 * number))
        assert await watch.errors() == (total := total + 10), number
        append(log, lines(7, 20 * number + 10))
        for old in (log.with_name("api.log.1"), log.with_name("api.log.1.gz")):
            if number in (2, 6):
                old.unlink(missing_ok=True)
        rotate()
        append(log, lines(4, 20 * number + 17))
        total += 11 + (5 if number == 3 else 0)
        assert await watch.errors() == total, number
        assert await watch.errors() == total, number
        assert "lost" not in str((await watch()).unavailable)


@pytest.mark.parametrize("reason", ["missing", "damaged", "lz4"])
async def test_a_compressed_predecessor_that_cannot_be_read_is_a_loss(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "api.log"
    log.write_text(lines(3))
    watch = Watch(log)
    await watch()
    append(log, lines(100))
    assert [one.holds for one in (await watch()).signals] == [False]
    watch.end_storms()
    append(log, lines(100))
    rename(log)
    compress(log.with_name("api.log.1"), ".zst")
    packed, told = log.with_name("api.log.1.zst"), "Unable to decompress|ended before"
    if reason == "damaged":
        data = bytearray(packed.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        packed.write_bytes(data)
    elif reason == "missing":
        for name in ("compression.zstd", "backports.zstd"):
            monkeypatch.setitem(sys.modules, name, None)  # so that it is not found
        told = "this Python reads no .zst \\(hint: pip install 'midwatch\\[logs\\]'\\)"
    else:
        packed.rename(log.with_name("api.log.1.lz4"))
        told = "no .lz4 is read \\(hint: let the log"
    found = await watch()
    why = found.unavailable["error_storm"]
    assert re.search(f"cannot be read: ({told})", why), why
    assert not any(one.holds for one in found.signals)


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
@pytest.mark.parametrize("option", ["create", "copytruncate", "compress", "dateext"])
async def test_logrotate_itself(tmp_path: Path, option: str) -> None:
    log, config = tmp_path / "api.log", tmp_path / "rotate.conf"
    log.write_text(lines(3))
    config.write_text(f"{log} {{\n  rotate 4\n  {option}\n}}\n")
    watch = Watch(log)
    await watch()
    append(log, lines(10))
    subprocess.run(
        ["logrotate", "--force", "--state", tmp_path / "state", config], check=True
    )
    append(log, lines(10))
    assert await watch.errors() == 20
    assert await watch.errors() == 20


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
async def test_a_new_file_may_have_the_inode_and_the_beginning_of_the_last_one(
    tmp_path: Path, suffix: str
) -> None:
    """A file system gives the inode of what was compressed to the next file, and a log may begin with the same text each time."""
    log = tmp_path / "api.log"
    log.write_text(lines(3))
    watch = Watch(log)
    await watch()
    append(log, lines(10, 3))
    rotated, inode = log.with_name("api.log.1"), log.stat().st_ino
    shutil.copy(log, rotated)
    if suffix:
        compress(rotated, suffix)
    log.write_text(lines(10))
    assert log.stat().st_ino == inode
    assert await watch.errors() == 20
    assert await watch.errors() == 20


async def test_a_line_that_is_rotated_in_its_middle_is_one(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("")
    watch = Watch(log)
    await watch()
    with log.open("a") as writer:  # keeps the old file open, as a program does
        writer.write("2026 ERROR first\n2026 ERROR order 1 can")
        writer.flush()
        assert await watch.errors() == 1
        log.rename(log.with_name("api.log.1"))
        log.write_text(line(2))
        assert await watch.errors() == 2
        writer.write("not be stored\n")
    assert await watch.errors() == 3
    append(log, "2026 ERROR order 3 can")
    copytruncate(log)
    append(log, "not be stored\n")
    assert await watch.errors() == 4
    shapes = watch.state["sources"]["api"]["shapes"]
    assert {one["text"] for one in shapes} == {
        "first",
        "order # cannot be stored",
    }


async def test_what_is_lost_is_unknown_and_resolves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text(lines(30))
    watch = Watch(log)
    await watch()
    append(log, lines(100))
    assert len((await watch()).signals) == 1
    watch.end_storms()
    watch.subject.most_bytes = 1  # so that a part of it is left
    append(log, lines(40_000))
    await watch()
    watch.end_storms()
    log.unlink()
    log.write_text(lines(1))
    found = await watch()
    assert not found.covers("error_storm") and not found.signals
    why = found.unavailable["error_storm"]
    assert "before its last 1.2 MB were read" in why and str(log) in why
    log.unlink()
    found = await watch()
    assert "No such file" in found.unavailable["error_storm"] and not found.signals
    log.write_text("")
    assert not (await watch()).covers("error_storm")
    watch.state["sources"]["api"]["lost"] = [0.0, ""]  # the window is over
    [again] = (await watch()).signals
    assert again.holds is True


async def test_files_that_come_and_go_lose_nothing_that_was_read(
    tmp_path: Path,
) -> None:
    """Each observation a pod's log was deleted, as a cluster does; a storm that is over resolves all the same."""
    beat = {"name": "worker", "pattern": "worker is alive", "within": "1s"}
    watch = Watch(tmp_path / "*.log", source={"heartbeats": [beat]})
    storm, steady = tmp_path / "pod-storm.log", tmp_path / "steady.log"
    steady.write_text("")

    def next_pod(number: int) -> None:
        (tmp_path / f"pod-{number - 1}.log").unlink(missing_ok=True)
        (tmp_path / f"pod-{number}.log").write_text(f"2026 INFO start {number}\n")

    async def storm_signals(number: int) -> list[bool | None]:
        next_pod(number)
        found = await watch()
        assert not found.unavailable, number
        about = [one for one in found.signals if one.invariant == "error_storm"]
        assert all(one.value is None for one in about if one.holds is not False)
        watch.end_storms()
        return [one.holds for one in about]

    assert await storm_signals(0) == []
    storm.write_text(lines(100) + "2026 INFO worker is alive\n")
    assert await storm_signals(1) == [False]
    storm.unlink()
    assert await storm_signals(2) == [None], "it may have had more such lines"
    beats = watch.state["sources"]["api"]["beats"]["worker"]
    assert beats[0] < beats[1] and not beats[2], "and more heartbeats"
    assert await storm_signals(3) == [True], "other files had none of them"
    assert await storm_signals(4) == []
    append(steady, lines(100))
    assert await storm_signals(5) == [False]
    assert await storm_signals(6) == [True]
    append(steady, lines(100))
    assert await storm_signals(7) == [False]
    os.truncate(steady, 0)  # and no copy of it is left
    assert await storm_signals(8) == [None]
    assert await storm_signals(9) == [True]


# ------------------------------------------------------------------ what is no log, or more than can be read


async def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.log")
    (tmp_path / "loop.log").symlink_to(tmp_path / "loop.log")
    (tmp_path / "folder.log").mkdir()
    (tmp_path / "binary.log").write_bytes(b"\1\2\3\4" * 2000 + b"\n")
    (tmp_path / "wide.log").write_text("2026 ERROR wide\n" * 50, "utf-16")
    (tmp_path / "good.log").write_text("")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "unix.log"))
        watch = Watch(tmp_path / "*.log")
        await watch()
        for name in ("binary", "wide"):
            with (tmp_path / f"{name}.log").open("ab") as file:
                file.write((tmp_path / f"{name}.log").read_bytes())
        append(tmp_path / "good.log", lines(100))
        found = await watch()
    assert [one.invariant for one in found.signals] == ["error_storm"]
    told = str(found.unavailable["error_storm"])
    assert "loop.log: Too many levels of symbolic links" in told
    left_out = str(found.ignored)
    for what in ("a FIFO", "a socket", "binary.log is binary", "wide.log is binary"):
        assert what in left_out, what
    for path, why in (("fifo", "a FIFO"), ("folder", "a folder"), ("gone", "No such")):
        one = Watch(tmp_path / f"{path}.log")
        assert why in str((await one()).unavailable)
    assert "/dev/zero is a device" in str((await Watch("/dev/zero")()).unavailable)
    assert "no file matches" in str((await Watch(tmp_path / "*.txt")()).unavailable)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_may_not_be_read_is_unknown(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text(lines(5))
    log.chmod(0)
    watch = Watch(log)
    assert "Permission denied" in str((await watch()).unavailable)
    log.chmod(0o600)
    append(log, lines(10))
    assert await watch.errors() == 10
    append(log, lines(10))
    log.chmod(0)
    assert "Permission denied" in str((await watch()).unavailable)
    log.chmod(0o600)
    assert await watch.errors() == 20


async def test_a_folder_that_may_not_be_listed_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    log, other = folder / "api.log", tmp_path / "other" / "web.log"
    other.parent.mkdir()
    log.write_text(lines(5))
    other.write_text("")
    watch = Watch(tmp_path / "*" / "*.log", tmp_path / "**" / "*.log")
    assert (await watch()).covers("error_storm")
    append(log, lines(100))
    [storm] = (await watch()).signals
    assert storm.holds is False
    append(log, lines(10))
    with monkeypatch.context() as patch:
        closed(folder, patch)
        watch.state["sources"]["api"]["shapes"][0]["series"] = []  # the storm is over
        found = await watch()
        folder.chmod(0o700)
    assert not found.signals and not found.covers("error_storm")
    why = found.unavailable["error_storm"]
    assert why.startswith(f"api: {folder} cannot be listed: Permission denied (hint: ")
    assert why.count("cannot be listed") == 1 and "deleted" not in why
    assert await watch.errors() == 10, "it goes on where it was"
    assert not (await watch()).unavailable


def closed(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let a folder be one that may not be listed, for root as well."""
    folder.chmod(0)
    if os.geteuid() != 0:
        return
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    patch.setattr(os, "scandir", refuse)


async def test_wildcards_match_as_those_of_a_shell(tmp_path: Path) -> None:
    for name in ("a/x.log", "a/b/y.log", "a/.hidden/z.log", "a/.h.log", "w[1].log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "a" / "b" / "gone").symlink_to(tmp_path / "nowhere")
    patterns = ("*", "*/*.log", "**/*.log", "**", "?/x.log", "a/**/y.log", "*/b/y.log")
    for pattern in (*patterns, "a/.*", "[ab]/x.*", "**/.*/z.log", "w[[]1].log", "no/*"):
        told: list[str] = []
        found = matching(f"{tmp_path}/{pattern}", lambda path, _: told.append(path))
        plain = glob.glob(f"{tmp_path}/{pattern}", recursive=True)
        assert {os.path.realpath(one) for one in found} | {str(tmp_path)} == {
            os.path.realpath(one) for one in plain
        } | {str(tmp_path)}, pattern
        assert not told


async def test_a_sparse_file_and_a_line_without_end(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with log.open("wb") as file:
        file.truncate(
            10 << 30
        )  # 10 GB, as a file has that was truncated under its writer
    watch = Watch(log)
    await watch()
    append(log, "\n" + lines(10))
    assert await watch.errors() == 10
    os.truncate(log, 30 << 30)
    append(log, lines(10))
    assert await watch.errors() == 20
    append(log, "2026 ERROR " + "x" * 3_000_000 + "\n" + lines(5))
    assert await watch.errors() == 26


async def test_a_backlog_is_read_in_pieces_without_loss(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("")
    watch = Watch(log)
    watch.subject.most_bytes = 1_500_000
    await watch()
    written = "".join(f"2026 INFO order {n}\n" for n in range(200_000)) + lines(2000)
    with gzip.open(log.with_name("api.log.2.gz"), "wt") as packed:
        packed.write(written)
    append(log.with_name("api.log.1"), written)
    append(log, written)
    unknown = 0
    while "not read yet" in str((found := await watch()).unavailable):
        unknown += 1
        assert not found.covers("heartbeat") and not found.covers("error_storm")
        assert not any(one.holds for one in found.signals)
    assert unknown > 3 and await watch.errors() == 6000


async def test_a_kill_between_reading_and_saving_counts_each_line_once(
    tmp_path: Path,
) -> None:
    log = tmp_path / "api.log"
    log.write_text("")
    watch = Watch(log)
    await watch()
    append(log, lines(100))
    saved = watch.state
    await watch()  # its state is lost with the process
    again = Watch(log)
    again.state = saved
    append(log, lines(20))
    assert await again.errors() == 120
