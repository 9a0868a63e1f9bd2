"""Three-way merge: whatever two sides did to a tree, nothing that was written is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from midwatch.content.sync.merge import CONFLICTS, Merged, git_folder_of, merge
from midwatch.content.tree import Entry, Tree, check_tree, chunk_hash, version_of

FOLDER = Entry("folder", 0o755)


def file(content: str, mode: int = 0o644) -> Entry:
    return Entry("file", mode, len(content), (chunk_hash(content.encode()),))


def link(target: str) -> Entry:
    return Entry("symlink", 0o777, target=target)


# Few names and few contents, so that the two sides meet.
names = st.sampled_from(["a", "b", ".git"])
leaves = st.one_of(
    st.builds(
        file,
        st.text("xyz", min_size=1, max_size=2),
        st.sampled_from([0o644, 0o755, 0o000]),
    ),
    st.builds(link, st.sampled_from(["a", "../x"])),
)
nested = st.recursive(
    leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=6
)


def flat(node: object, path: str = "w") -> dict[str, Entry]:
    if isinstance(node, Entry):
        return {path: node}
    assert isinstance(node, dict)
    tree = {path: FOLDER}
    for name, inner in node.items():
        tree |= flat(inner, f"{path}/{name}")
    return tree


trees = st.dictionaries(names, nested, max_size=3).map(flat)


def written(side: Tree, base: Tree) -> set[tuple[object, ...]]:
    """Return the contents that a side added."""
    new = (e for p, e in side.items() if base.get(p) != e and e.kind != "folder")
    before = {(e.chunks, e.target) for e in base.values()}
    return {(e.chunks, e.target) for e in new} - before


def contents(tree: Tree) -> set[tuple[object, ...]]:
    return {(e.chunks, e.target) for e in tree.values() if e.kind != "folder"}


@given(trees, trees, trees)
def test_nothing_is_lost_and_both_sides_become_equal(
    base: Tree, ours: Tree, theirs: Tree
) -> None:
    merged = merge(base, ours, theirs)
    check_tree(merged.tree)
    assert written(ours, base) | written(theirs, base) <= contents(merged.tree)
    assert merged.to_apply_locally.apply(ours) == merged.tree
    assert merged.to_push.apply(theirs) == merged.tree


@given(trees, trees, trees)
def test_a_folder_above_everything(base: Tree, ours: Tree, theirs: Tree) -> None:
    tree = merge(base, ours, theirs).tree
    for path in tree:
        above = path.rpartition("/")[0]
        assert not above or tree[above].kind == "folder"


@given(trees, trees, trees)
def test_merging_again_changes_nothing(base: Tree, ours: Tree, theirs: Tree) -> None:
    tree = merge(base, ours, theirs).tree
    for before in (base, ours, theirs, tree):
        again = merge(before, tree, tree)
        assert again.tree == tree and not again.conflicts
    assert merge(theirs, tree, theirs).tree == tree
    assert merge(ours, ours, tree).tree == tree


@given(trees, trees)
def test_the_change_of_one_side_is_taken_whole(base: Tree, changed: Tree) -> None:
    assert merge(base, base, changed).tree == changed
    assert merge(base, changed, base).tree == changed


def kinds_and_contents(merged: Merged) -> dict[str, tuple[object, ...]]:
    return {p: (e.kind, e.chunks, e.target) for p, e in merged.tree.items()}


@given(trees, trees, trees)
def test_without_a_conflict_the_sides_can_be_exchanged(
    base: Tree, ours: Tree, theirs: Tree
) -> None:
    one, other = merge(base, ours, theirs), merge(base, theirs, ours)
    # (One side's empty folder where the other has a file is a conflict for one of them only.)
    if not one.conflicts and not other.conflicts:
        assert kinds_and_contents(one) == kinds_and_contents(other)


@given(trees, trees, trees)
def test_a_repository_is_of_one_side(base: Tree, ours: Tree, theirs: Tree) -> None:
    """A `.git` folder equals that of one side, unless it was removed with the folder above it."""

    def unit(tree: Tree, name: str) -> dict[str, Entry]:
        return {p: e for p, e in tree.items() if git_folder_of(p) == name}

    tree = merge(base, ours, theirs).tree
    for name in {u for p in tree if (u := git_folder_of(p))} - {None}:
        if not name.startswith(CONFLICTS):
            assert unit(tree, name) in (unit(ours, name), unit(theirs, name))


def test_both_changed_a_file() -> None:
    base = {"w": FOLDER, "w/f": file("old")}
    ours = base | {"w/f": file("ours")}
    theirs = base | {"w/f": file("theirs")}
    merged = merge(base, ours, theirs)
    place = f"{CONFLICTS}/{version_of(theirs)[:8]}/w/f"
    assert merged.conflicts == {"w/f": place}
    assert merged.tree["w/f"] == file("ours")
    assert merged.tree[place] == file("theirs")


def test_content_of_one_side_and_mode_of_the_other() -> None:
    base = {"f": file("old")}
    merged = merge(base, {"f": file("new")}, {"f": file("old", 0o755)})
    assert merged.tree == {"f": file("new", 0o755)} and not merged.conflicts


def test_a_change_beats_a_removal() -> None:
    base = {"w": FOLDER, "w/f": file("old"), "w/g": file("old")}
    theirs = {"w": FOLDER, "w/f": file("new"), "w/g": file("old")}
    for ours, other in (({}, theirs), (theirs, {})):
        merged = merge(base, ours, other)
        assert merged.tree == {"w": FOLDER, "w/f": file("new")}
        assert not merged.conflicts


def test_a_file_in_a_folder_that_became_a_file() -> None:
    base = {"w": FOLDER, "w/f": file("old")}
    ours, theirs = {"w": file("now a file")}, base | {"w/new": file("new")}
    merged = merge(base, ours, theirs)
    assert merged.tree["w"] == file("now a file")
    assert list(merged.conflicts) == ["w/new"]
    other = merge(base, theirs, ours)
    assert other.tree["w/new"] == file("new")
    assert list(other.conflicts) == ["w"]


def test_two_repositories_are_not_mixed() -> None:
    base = {
        "r": FOLDER,
        "r/.git": FOLDER,
        "r/.git/HEAD": file("a"),
        "r/.git/o": file("o"),
    }
    ours = base | {"r/.git/HEAD": file("b")}
    theirs = base | {"r/.git/index": file("c")}
    merged = merge(base, ours, theirs)
    assert "r/.git/index" not in merged.tree
    kept = {p.partition("/r/")[2] for p in merged.conflicts.values()}
    assert kept == {".git/HEAD", ".git/o", ".git/index"}


def test_a_name_too_long_to_be_kept_below_another() -> None:
    path = "/".join(["x" * 254] * 16)
    merged = merge({}, {path: file("a")}, {path: file("b")})
    check_tree(merged.tree)
    assert file("b") in merged.tree.values()
