"""Applying a tree to a local folder: also after a crash, and without touching anything else."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.content.errors import ContentDamaged
from midwatch.content.sync.apply import (
    Applied,
    Plan,
    Staging,
    apply_plan,
    clear_all,
    make_plan,
    read_plan,
    write_plan,
)
from midwatch.content.sync.merge import merge
from midwatch.content.sync.roots import STAGING, Roots
from midwatch.content.sync.round import BaseFile
from midwatch.content.sync.scan import Scanner
from midwatch.content.tree import Delta, Entry, Tree, chunk_hash, delta_between

CONTENTS = [b"", b"one", b"two" * 1000]
STORE = {chunk_hash(data): data for data in CONTENTS if data}
FOLDER = Entry("folder", 0o755)


def file(data: bytes, mode: int = 0o644) -> Entry:
    return Entry("file", mode, len(data), (chunk_hash(data),) if data else ())


names = st.sampled_from(["a", "b", "c"])
# Who is not root cannot read again what it has closed to itself.
ROOT = os.geteuid() == 0
file_modes = st.sampled_from([0o755, 0o500, 0o000 if ROOT else 0o400, 0o644])
folder_modes = st.sampled_from([0o755, 0o500, *([0o000, 0o644] if ROOT else [0o700])])
leaves = st.one_of(
    st.builds(file, st.sampled_from(CONTENTS), file_modes),
    st.builds(
        lambda target: Entry("symlink", 0o777, target=target),
        st.sampled_from(["a", "/", "../../outside"]),
    ),
)
nested = st.recursive(
    leaves,
    lambda inner: st.tuples(folder_modes, st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)


def flat(node: object, path: str) -> dict[str, Entry]:
    if isinstance(node, Entry):
        return {path: node}
    assert isinstance(node, tuple)
    tree = {path: Entry("folder", node[0])}
    for name, inner in node[1].items():
        tree |= flat(inner, f"{path}/{name}")
    return tree


trees = st.dictionaries(names, nested, max_size=3).map(
    lambda inner: flat((0o755, inner), "w")
)


class Local:
    """A local folder that can become another tree."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.work.mkdir()
        self.roots = Roots({"w": self.work})
        self.scanner = Scanner(self.roots)

    def tree(self) -> dict[str, Entry]:
        return dict(self.scanner.scan().tree)

    def planned(self, tree: Tree) -> Plan:
        scan = self.scanner.scan()
        delta = delta_between(scan.tree, tree)
        files = {p: e for p, e in delta.put.items() if e.kind != "folder"}
        staging = Staging(self.roots, files)
        try:
            staging.open()
            staging.write([(name, STORE[name]) for name in staging.wanted])
            staging.finish()
        finally:
            staging.close()
        return make_plan(delta, scan, tree, staging.names)

    def become(self, tree: Tree) -> Applied:
        outcome = apply_plan(self.roots, self.planned(tree))
        clear_all(self.roots)
        return outcome


@contextmanager
def place() -> Iterator[Local]:
    root = Path(tempfile.mkdtemp())
    try:
        yield Local(root)
    finally:
        for folder, _, _ in os.walk(root):
            os.chmod(folder, 0o700)
        shutil.rmtree(root)


@pytest.fixture
def here(tmp_path: Path) -> Local:
    return Local(tmp_path)


@given(trees, trees)
def test_any_tree_becomes_any_other(one: Tree, other: Tree) -> None:
    with place() as here:
        for tree in (one, other):
            assert not here.become(tree).skipped
            assert here.tree() == tree


class Dead(Exception):
    pass


def dies_at(number: int) -> Callable[[str], None]:
    steps = itertools.count(1)

    def step(name: str) -> None:
        if next(steps) == number:
            raise Dead

    return step


@settings(max_examples=60)
@given(trees, trees, st.integers(1, 9))
def test_the_rest_is_done_after_a_crash(one: Tree, other: Tree, at: int) -> None:
    with place() as here:
        here.become(one)
        write_plan(here.root / "plan", here.planned(other))
        made = read_plan(here.root / "plan")
        assert made is not None
        with pytest.raises(Dead) if at <= 3 else _perhaps():
            apply_plan(here.roots, made, dies_at(at))
        assert not apply_plan(here.roots, made).skipped
        assert here.tree() == other
        # And once more, as after a crash between the end and the note that it is over.
        apply_plan(here.roots, made)
        assert here.tree() == other


@contextmanager
def _perhaps() -> Iterator[None]:
    try:
        yield
    except Dead:
        pass


def do_nothing(work: Path) -> None:
    """Nothing changes before the plan is applied."""


def write_to_it(work: Path) -> None:
    (work / "d/f").write_bytes(b"ours, later")


def swap_the_folder(work: Path) -> None:
    shutil.move(work / "d", work.parent / "moved")
    (work / "d").symlink_to(work.parent / "outside")


def swap_the_file(work: Path) -> None:
    (work / "d/f").unlink()
    (work / "d/f").symlink_to(work.parent / "outside/f")


def swap_what_was_made_ready(work: Path) -> None:
    shutil.rmtree(work / STAGING)
    (work / STAGING).symlink_to(work.parent / "outside")


def take_away_what_was_made_ready(work: Path) -> None:
    shutil.rmtree(work / STAGING)


@pytest.mark.parametrize(
    ("meanwhile", "skipped"),
    [
        (do_nothing, set()),
        (write_to_it, {"w/d/f"}),
        (swap_the_folder, {"w/d", "w/d/f", "w/d/new"}),
        (swap_the_file, {"w/d/f"}),
        (swap_what_was_made_ready, {"w/d/f", "w/d/new"}),
        (take_away_what_was_made_ready, {"w/d/f", "w/d/new"}),
    ],
)
def test_what_changed_meanwhile_is_left_alone(
    here: Local, meanwhile: Callable[[Path], None], skipped: set[str]
) -> None:
    before = {"w": FOLDER, "w/d": FOLDER, "w/d/f": file(b"one"), "w/d/gone": file(b"")}
    here.become(before)
    outside = here.root / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"outside")
    (outside / "gone").write_bytes(b"outside")
    after = {"w": FOLDER, "w/d": Entry("folder", 0o700)}
    after |= {"w/d/f": file(CONTENTS[2]), "w/d/new": file(b"one")}
    made = here.planned(after)
    meanwhile(here.work)
    assert apply_plan(here.roots, made).skipped == skipped
    for name in ("f", "gone"):
        assert (outside / name).read_bytes() == b"outside"
    assert sorted(os.listdir(outside)) == ["f", "gone"]
    assert outside.stat().st_mode & 0o777 != 0o700
    if meanwhile is write_to_it:
        assert (here.work / "d/f").read_bytes() == b"ours, later"


def test_a_folder_with_something_new_in_it_stays(here: Local) -> None:
    here.become({"w": FOLDER, "w/d": FOLDER, "w/d/f": file(b"one")})
    made = here.planned({"w": FOLDER})
    (here.work / "d/new").write_bytes(b"new")
    assert apply_plan(here.roots, made).skipped == {"w/d"}
    assert os.listdir(here.work / "d") == ["new"]


def test_a_name_that_the_file_system_does_not_take(here: Local) -> None:
    outcome = here.become(
        {"w": FOLDER, f"w/{'x' * 300}": file(b"one"), "w/f": file(b"")}
    )
    assert outcome.impossible == outcome.skipped == {f"w/{'x' * 300}"}
    assert os.listdir(here.work) == ["f"]


@pytest.mark.integration  # as root: in a process of another user
def test_without_being_root(here: Local) -> None:
    """Folders that forbid their owner to change them are opened for it and closed again."""
    sealed = {"w": FOLDER, "w/d": Entry("folder", 0o500), "w/d/f": file(b"one", 0o400)}
    after = {"w": FOLDER, "w/d": Entry("folder", 0o500), "w/d/g": file(b"one", 0o000)}

    def passes() -> bool:
        return not here.become(sealed).skipped and not here.become(after).skipped

    if os.geteuid() != 0:
        assert passes()
        folder = here.work / "d"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o500
        assert stat.S_IMODE((folder / "g").stat().st_mode) == 0o000
        assert os.listdir(folder) == ["g"]
        (folder / "g").chmod(0o400)
        assert (folder / "g").read_bytes() == b"one"
        return
    for above in (here.root, *here.root.parents):
        if above.stat().st_uid == os.getuid() and len(above.parts) > 2:
            above.chmod(0o755)
    os.chown(here.work, 10001, 10001)
    child = os.fork()
    if not child:
        os.setgid(10001)
        os.setuid(10001)
        os._exit(0 if passes() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert here.tree() == after


# ------------------------------------------------------------------ the base


@given(st.lists(trees, max_size=6), st.integers(0, 40))
def test_the_base_survives_a_line_that_was_cut(
    changes: list[Mapping[str, Entry]], cut: int
) -> None:
    with place() as here:
        path = here.root / "base"
        base = BaseFile(path)
        known: list[tuple[Tree, str]] = [({}, "")]
        for number, tree in enumerate(changes):
            base.advance(delta_between(base.tree, tree), f"{number}")
            known.append((tree, f"{number}"))
        again = BaseFile(path)
        again.load()
        assert (again.tree, again.version) == known[-1]
        if len(known) > 2 and 0 < cut < len(path.read_bytes().splitlines(True)[-1]):
            with path.open("r+b") as opened:
                opened.truncate(path.stat().st_size - cut)
            again = BaseFile(path)
            again.load()
            assert (again.tree, again.version) == known[-2]
            again.advance(delta_between(again.tree, known[-1][0]), "last")
            whole = BaseFile(path)
            whole.load()
            assert (whole.tree, whole.version) == (known[-1][0], "last")


def test_a_base_that_cannot_be_read_is_no_empty_one(here: Local) -> None:
    (here.root / "base").write_text("[]\n")
    with pytest.raises(ContentDamaged):
        BaseFile(here.root / "base").load()


def test_merge_and_apply_agree(here: Local) -> None:
    ours = {"w": FOLDER, "w/a": file(b"one")}
    here.become(ours)
    merged = merge({}, here.tree(), {"w": FOLDER, "w/b": file(b"one")})
    here.become(merged.tree)
    assert here.tree() == merged.tree
    assert merged.to_apply_locally == Delta({"w/b": file(b"one")}, frozenset())
