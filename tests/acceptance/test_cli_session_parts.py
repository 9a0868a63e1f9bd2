"""What the commands of sessions are made of, where it needs no process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from midwatch.cli.session.options import parse_repository
from midwatch.errors import SettingsError
from midwatch.model import Usage
from midwatch.session.event_words import event_line
from midwatch.session.events import Event, ModelUsage, Phase
from midwatch.session.options import (
    OptionOverrides,
    git_environment,
    session_options,
)
from midwatch.session.records import add_status, subtract_status
from midwatch.session.status import SessionStatus
from midwatch.settings import GitCredentialSettings, SessionSettings


@pytest.mark.parametrize(
    ("text", "url", "branch"),
    [
        ("https://example.org/a/b.git", "https://example.org/a/b.git", None),
        ("https://example.org/a/b@fix/x", "https://example.org/a/b", "fix/x"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git", None),
        ("git@example.org:a/b.git@v2", "git@example.org:a/b.git", "v2"),
        ("ssh://git@example.org/a@main", "ssh://git@example.org/a", "main"),
        ("/srv/a.git@main", "/srv/a.git", "main"),
        ("/srv/@scope/a@main", "/srv/@scope/a", "main"),
    ],
)
def test_a_repository_and_its_branch(text: str, url: str, branch: str | None) -> None:
    parsed = parse_repository(text, "out")
    assert (parsed.url, parsed.branch, parsed.push_branch) == (url, branch, "out")


def test_a_path_with_an_at_sign_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "a@b"
    path.mkdir()
    assert parse_repository(str(path)).url == str(path)


def test_tokens_come_from_a_variable_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-the-file\n")
    git = [
        GitCredentialSettings(host="https://a.example", token_variable="GIT_A"),
        GitCredentialSettings(host="https://b.example", token_file=tmp_path / "token"),
    ]
    settings = SessionSettings(git=git)
    found = git_environment(settings, {"GIT_A": "from-the-variable"}).credentials
    assert [one.token for one in found] == ["from-the-variable", "from-the-file"]
    with pytest.raises(SettingsError, match=r"git\[0\].*no GIT_A"):
        git_environment(settings, {})
    neither = SessionSettings(git=[GitCredentialSettings(host="https://a.example")])
    with pytest.raises(SettingsError, match="either token_variable or token_file"):
        git_environment(neither, {})


def test_overrides_replace_earlier_overrides_and_those_the_settings() -> None:
    settings = SessionSettings(
        max_usd=2.0, allowed_tools=["Bash"], trust_repository=True
    )
    earlier = OptionOverrides(model="claude-a", trust=False, wall=60.0)
    options = session_options(
        settings,
        OptionOverrides(model="claude-b", allow=("Write",)).over(earlier),
        spent=0.5,
    )
    assert (
        OptionOverrides.from_json(json.loads(json.dumps(earlier.to_json()))) == earlier
    )
    assert (options.model, options.trust_repository) == ("claude-b", False)
    assert options.allowed_tools == ("Bash", "Write")
    assert (options.limits.wall, options.limits.max_usd) == (60.0, 1.5)


def test_sums_over_machines() -> None:
    """Here, then elsewhere, then here again: nothing is lost and nothing counts twice."""
    here = SessionStatus(run=1, turns=2, spend={"a": ModelUsage(Usage(10, 1), 0.5)})
    there = SessionStatus(run=1, turns=3, spend={"b": ModelUsage(Usage(20, 2), 1.0)})
    both = add_status(subtract_status(here, SessionStatus()), there)
    assert (both.run, both.turns, both.cost_usd) == (2, 5, 1.5)
    again = SessionStatus(Phase.COMPLETED, run=2, turns=4, spend=here.spend)
    total = add_status(subtract_status(both, here), again)
    assert (total.run, total.turns, total.cost_usd) == (3, 7, 1.5)
    assert total.usage == Usage(30, 3) and total.phase is Phase.COMPLETED


def test_every_event_has_a_line_or_is_left_out_on_purpose() -> None:
    from midwatch.session.event_words import _LINES

    assert set(_LINES) == set(Event.__args__)
    assert event_line(Event.__args__[-1](text="Hm.")) == ("notice", "Hm.")
