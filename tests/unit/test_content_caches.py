"""What the proxy keeps in memory: the steps between versions, within bounds, and keys that are replaced."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.content.server.cache import History, ManifestCache
from midwatch.content.server.segments import Index
from midwatch.content.tokens import KeyFile, read_keys
from midwatch.logs import open_log
from midwatch.redaction import Redactor
from midwatch.settings import LogSettings

OLD, NEW = b"o" * 32, b"n" * 32


commits = st.lists(
    st.tuples(
        st.sampled_from("xy"), st.sampled_from("abc"), st.integers(0, 2), st.booleans()
    ),
    max_size=30,
)


@given(commits)
def test_a_difference_leads_to_the_present_tree(
    commits: list[tuple[str, str, int, bool]],
) -> None:
    """Versions recur, and some commits are made by another process, which the history does not see."""

    def name(tree: dict[str, int]) -> str:
        return str(sorted(tree.items()))

    history = History(limit=1500, of_one=1000)
    trees: dict[str, list[dict[str, int]]] = {"x": [{}], "y": [{}]}
    for folder, path, value, ours in commits:
        before = trees[folder][-1]
        after = {**before, path: value}
        if after != before:
            trees[folder].append(after)
            if ours:
                history.add(folder, name(before), name(after), frozenset(path))
    for folder, (*past, present) in trees.items():
        for known in past:
            paths = history.since(folder, name(known), name(present))
            if paths is not None:
                kept = {path: known[path] for path in known.keys() - paths}
                assert kept | {path: present[path] for path in paths} == present


def test_the_memory_has_bounds() -> None:
    history = History(limit=100_000, of_one=20_000)
    for folder, version in itertools.product(range(20), range(50)):
        paths = frozenset(f"{version}/{'p' * 100}{n}" for n in range(10))
        history.add(f"{folder}", f"{version}", f"{version + 1}", paths)
    assert history.since("19", "49", "50") and history.since("19", "45", "50")
    assert history.since("19", "0", "50") is None  # too long ago
    assert history.since("0", "49", "50") is None  # too many others since
    history.add("19", "50", "51", frozenset("p" * 4000 + f"{n}" for n in range(50)))
    assert history.since("19", "50", "51") is None  # too much at once
    history.add("19", "51", "52", frozenset("p"))
    assert history.since("19", "51", "52") == frozenset("p")


def test_folders_with_little_in_them_have_bounds_too() -> None:
    history, cache = History(limit=100_000), ManifestCache(limit=100_000)
    names = [f"team/folder-{number}.0123abcd" for number in range(1000)]
    tracemalloc.start()
    try:
        for name in names:
            history.add(name, f"before {name}", f"after {name}", frozenset("a"))
            cache.put_index(name, Index(), {})
        assert tracemalloc.get_traced_memory()[0] < 250_000
    finally:
        tracemalloc.stop()
    assert history.since(name, f"before {name}", f"after {name}") == {"a"}


# ------------------------------------------------------------------ keys


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def keys_of(file: Path, log: io.StringIO) -> KeyFile:
    opened = open_log(LogSettings(format="json"), log, Redactor())
    return KeyFile(file, read_keys(file), opened)


def test_a_mounted_secret_is_replaced(tmp_path: Path, log: io.StringIO) -> None:
    """As the kubelet does it: a new folder, then one symlink that is changed to point there."""
    file, data = tmp_path / "key", tmp_path / "..data"

    def put(name: str, *keys: bytes) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "key").write_bytes(b"\n".join(keys))
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").rename(data)

    put("..2026_01", OLD)
    file.symlink_to("..data/key")
    keys = keys_of(file, log)
    assert keys() == (OLD,)
    put("..2026_02", NEW, OLD)
    assert keys() == (NEW, OLD)
    put("..2026_03", NEW)
    assert keys() == (NEW,)
    assert log.getvalue().count("keys have changed") == 2
    assert NEW.decode() not in log.getvalue()


def test_a_key_that_cannot_be_read_is_no_change(
    tmp_path: Path, log: io.StringIO
) -> None:
    file = tmp_path / "key"
    file.write_bytes(OLD)
    keys = keys_of(file, log)
    file.unlink()
    assert [keys(), keys(), keys()] == [(OLD,)] * 3
    assert log.getvalue().count("the old ones stay") == 1
    file.write_bytes(b"too short")
    assert keys() == keys() == (OLD,)
    assert log.getvalue().count("the old ones stay") == 2
    file.write_bytes(NEW)
    assert keys() == (NEW,)
