"""Folds of a page, and its parts for a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from midwatch.markdown import Block, blocks, fenced, fold, list_items

PIECES = [
    "```",
    "````",
    "~~~",
    "</details>",
    "<details><summary>x</summary>",
    "# a",
    "",
    "b",
]
hostile = st.lists(st.sampled_from(PIECES), max_size=8).map("\n".join)


@given(st.lists(hostile, min_size=1, max_size=3), hostile)
def test_no_command_ends_its_fence_or_the_fold_around_it(
    commands: list[str], first: str
) -> None:
    inner = "\n\n".join(map(fenced, commands))
    page = f"{fenced(first)}\n\n{fold('below <b>', inner)}\n\nafter"
    code, folded, after = blocks(page)
    assert code == Block("code", first.strip("\n"))
    assert (folded.kind, folded.title, after) == (
        "fold",
        "below <b>",
        Block("text", "after"),
    )
    assert [one.text for one in blocks(folded.text)] == [
        c.strip("\n") for c in commands
    ]


def test_the_parts_of_a_page_in_their_order() -> None:
    inner = fold("inner", "- x")
    page = f"# a\n\nb\nc\n\n```text\n\n```\n{fold('outer', f'{inner}' + chr(10) + '## d')}\n~~~"
    assert [(one.kind, one.text or one.title) for one in blocks(page)] == [
        ("heading", "# a"),
        ("text", "b\nc"),
        ("code", ""),
        ("fold", f"{inner}\n## d"),
        ("code", ""),
    ]
    assert fold("empty", " \n") == ""


def test_the_entries_of_a_list_are_plain() -> None:
    items = list_items("- E1: `` a`b ``\n- E2, unverified: `*x*` \\*y\\*")
    assert list(items) == ["E1: a`b", "E2, unverified: *x* *y*"]
