"""Matchers mean the same here and in Debian's Alertmanager: its own program says which of them match."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from midwatch.matchers import InvalidMatcher, Matcher, match_all, parse_matchers

from ..waiting import PATIENCE

AMTOOL = shutil.which("amtool")
pytestmark = pytest.mark.skipif(AMTOOL is None, reason="no amtool here")

MATCHERS = [
    "team=shop",
    "team!=shop",
    'team=""',
    "team=",
    'missing!=""',
    'missing=~".*"',
    'missing!~".+"',
    'team=~"sh|op"',
    'team=~"sh.*"',
    "team=~sh.p",
    'team!~"s"',
    'team=~"(?i)SHOP"',
    r'path="C:\\temp"',
    r'path="C:\temp"',
    r'path=~"C:\\\\t\\w+"',
    r'path=~"C:\\\\t\w+"',
    r'text="say \"hi\", ok"',
    r"text=~.*\bok",
    r'text="line\nfeed"',
    "text=two words",
    " team = shop ",
    'team=~"[[:alpha:]]{4}"',
    r"text=~\pL+",
    "text==x",
]
LABELS = [
    {"team": "shop"},
    {"team": "Shop", "text": "two words"},
    {"team": "op", "path": "C:\\temp"},
    {"text": 'say "hi", ok', "path": "C:\temp"},
    {"text": "föö"},
    {"text": "=x"},
    {},
]
WRONG = ["team", "=shop", 'team=~"(a"', 'team="a', 'team=a"b', r'team=~"(?=a)"']


def matched(folder: Path, matchers: list[str], labels: dict[str, str]) -> set[int]:
    """Ask Alertmanager which of the matchers match the labels."""
    routes = [
        {"receiver": f"r{number}", "matchers": [text], "continue": True}
        for number, text in enumerate(matchers)
    ]
    config = {
        "route": {"receiver": "none", "routes": routes},
        "receivers": [{"name": "none"}, *({"name": one["receiver"]} for one in routes)],
    }
    file = folder / "alertmanager.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    given = [str(Matcher(name, "=", value)) for name, value in labels.items()]
    done = subprocess.run(
        [str(AMTOOL), "config", "routes", "test", f"--config.file={file}", *given],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    names = done.stdout.strip().split(",")
    return {int(name[1:]) for name in names if name != "none"}


@pytest.mark.parametrize("labels", LABELS, ids=str)
def test_the_same_matchers_match(tmp_path: Path, labels: dict[str, str]) -> None:
    ours = {
        number
        for number, text in enumerate(MATCHERS)
        if match_all(parse_matchers(text), labels)
    }
    assert ours == matched(tmp_path, MATCHERS, labels)


@pytest.mark.parametrize("text", WRONG)
def test_the_same_matchers_are_wrong(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidMatcher):
        parse_matchers(text)
    with pytest.raises(AssertionError):
        matched(tmp_path, [text], {"team": "a"})
