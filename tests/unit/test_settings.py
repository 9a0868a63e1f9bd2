"""Reading settings: what overrides what, and the page that documents them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.settings_page import settings_page

from midwatch.config import load
from midwatch.errors import SettingsError
from midwatch.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "midwatch.yaml"
    path.write_text(
        "agent: {concurrency: 3, poll_interval: 1m30s, daily_budget_usd: 5}\n"
        "database: ${DB}\n"
        "subjects: [{name: box, kind: host}]\n"
    )
    return path


def test_the_page_of_settings_is_current() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == settings_page(), "run `make docs`"


def test_every_setting_says_what_it_is() -> None:
    silent = [
        line
        for line in settings_page().partition("## `subjects`")[0].splitlines()
        if line.startswith("| `") and line.split(" | ")[3].strip() == ""
    ]
    assert silent == []


def test_defaults_need_neither_file_nor_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({}) == Settings()


def test_variables_override_the_file(file: Path) -> None:
    settings = load(
        {
            "DB": "sqlite:///of-env.db",
            "MIDWATCH_AGENT__POLL_INTERVAL": "250ms",
            "midwatch_agent__daily_budget_usd": "null",
            "PATH": "/bin",
        },
        file,
    )
    agent = settings.agent
    assert (agent.concurrency, agent.poll_interval) == (3, 0.25)
    assert agent.daily_budget_usd is None
    assert settings.database == "sqlite:///of-env.db"
    assert settings.subjects == [{"name": "box", "kind": "host"}]


def test_a_group_in_a_variable_is_json_and_its_parts_come_after_it(file: Path) -> None:
    settings = load(
        {
            "DB": "sqlite://",
            "MIDWATCH_AGENT__CONCURRENCY": "7",
            "MIDWATCH_AGENT": '{"concurrency": 5, "max_attempts": 2}',
            "MIDWATCH_SUBJECTS": '[{"name": "a", "kind": "http"}]',
        },
        file,
    )
    agent = settings.agent
    assert (agent.concurrency, agent.max_attempts, agent.poll_interval) == (7, 2, 90)
    assert settings.subjects == [{"name": "a", "kind": "http"}]


def test_the_file_can_be_named_by_variable_or_argument(file: Path) -> None:
    env = {"DB": "sqlite://", "MIDWATCH_CONFIG": str(file)}
    assert load(env) == load({"DB": "sqlite://"}, file)
    with pytest.raises(SettingsError, match="there is no settings file /elsewhere"):
        load(env, Path("/elsewhere"))


def test_a_group_that_is_no_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "midwatch.yaml"
    path.write_text("agent: fast\n")
    with pytest.raises(SettingsError) as caught:
        load({}, path)
    assert caught.value.path == "agent"
