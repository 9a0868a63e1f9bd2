"""Reading settings: what overrides what, and the page that documents them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError
from tools.settings_page import settings_page

from midwatch.cli.app import secrets_of
from midwatch.cli.stats import load_kinds
from midwatch.config import PROBLEMS, explain_problem, load
from midwatch.errors import SettingsError
from midwatch.model import Unit
from midwatch.settings import Settings
from midwatch.units import parse_limit, parse_ratio

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


@pytest.mark.parametrize(
    "written, read",
    [("on", "on"), ("off", "off"), ("auto", "auto"), ("false", "off"), ("'on'", "on")],
)
def test_on_and_off_may_be_truth_values_of_yaml(
    tmp_path: Path, written: str, read: str
) -> None:
    path = tmp_path / "midwatch.yaml"
    path.write_text(f"sessions: {{sandbox: {written}}}\n")
    assert load({}, path).sessions.sandbox == read
    assert load({"MIDWATCH_SESSIONS__SANDBOX": read}).sessions.sandbox == read


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


# ------------------------------------------------------------------ what is wrong

WRONG: list[Any] = [
    None, True, "5x", "", "a" * 30_000, b"\xff", -1, 0, 0.5, 10**30,
    float("inf"), float("nan"), [], {}, ["", 1], [{1: 2}, {"nonsense": 1}], ["x"] * 300,
    {1: 2}, {"a": 1}, {"a": "x"}, {"a": {}}, {"a": {1: 2}},
]  # fmt: skip
PYDANTIC = re.compile(
    r"input should|unable to|field required|parse|dictionary|instance|pydantic|extra"
    r"|\bint\b|\bfloat\b|\bstr\b|\bstring\b|\bdict\b|unicode|\[key\]|\.0s",
    re.IGNORECASE,
)


def groups(*models: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models, and all that stand within them."""
    for model in models:
        yield model
        for field in model.model_fields.values():
            yield from groups(*models_in(field.annotation))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for inner in get_args(annotation) for one in models_in(inner)]


def problems() -> Iterator[tuple[str, SettingsError]]:
    """Every problem of each setting with each wrong value, and what a person reads of it."""
    kinds = [kind.settings_model for kind in load_kinds()]
    for model in dict.fromkeys(groups(Settings, *kinds)):
        fields = [field.alias or name for name, field in model.model_fields.items()]
        written = [{name: value} for name in (*fields, 1) for value in WRONG]
        for one in (*written, {}, "text", {"concurrency": "9" * 5000}):
            try:
                model.model_validate(one)
            except ValidationError as error:
                for problem in error.errors(include_url=False)[:5]:
                    yield problem["type"], explain_problem(problem, model)


def test_every_problem_is_told_in_our_words() -> None:
    seen = set()
    for kind, error in problems():
        seen.add(kind)
        text = error.message.removeprefix(f"{error.path}: ")
        assert not PYDANTIC.search(re.sub(r"'[^']*'", "", text)), (kind, error)
        assert not PYDANTIC.search(error.path.replace("extra_", "")), (kind, error)
    # `less_than` is for the settings of plug-ins: no kind of this package has such a bound.
    assert seen - {"extra_forbidden"} == PROBLEMS.keys() - {"less_than"}


def test_a_problem_names_the_value_and_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "midwatch.yaml"
    for text, line in [
        (
            "monitor: {interval: 5x}",
            "monitor.interval: '5x' is not a duration; use 30s, 5m, 2h or 7d"
            " (Wait between two cycles; default 30s)",
        ),
        (
            "agent: {lease: 500ms}",
            "agent.lease: 500ms is too small; use 1s or more",
        ),
        (
            "subjects: [1]",
            "subjects[0]: 1 is not a mapping; use names and values such as {name: value}",
        ),
        (
            "operator: {api_key_secret: {nmae: x}}",
            "operator.api_key_secret.nmae: unknown setting (did you mean name?)",
        ),
        (
            "sessions: {variables: {TOKEN: [hunter2]}}",
            "sessions.variables.TOKEN: a list is not text",
        ),
    ]:
        path.write_text(text)
        with pytest.raises(SettingsError) as caught:
            load({}, path)
        assert caught.value.one_line().startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("agent: {", "line 1, column 9: a list or mapping in brackets is not closed"),
        ("agent:\n\tlease: 5m", "line 2, column 1: a tab cannot indent; use spaces"),
        ("agent:\n  a: 1\n b: 2", "line 3, column 2: the indentation differs"),
        ("database: a: b", "line 1, column 12: there is a second ':'"),
        ("database: 'x", "line 1, column 13: a quote is not closed"),
        ("database: *hunter2", "column 11: text that starts with * needs quotes"),
        ("database: !hunter2 x", "column 11: text that starts with ! needs quotes"),
        (
            "agent: {lease: 1}\nlog: {}\nagent: {}",
            "line 3, column 1: agent is given twice, first in line 1",
        ),
        (
            "database: &a [*a]",
            "line 1, column 15: text that starts with * needs quotes",
        ),
        ("agent: " + "[" * 300, "column 67: nested deeper than 60"),
        ("agent: {lease: " + "9" * 5000 + "}", "too long a number"),
        ("a: 1\n---\nb: 2", "there is a second document"),
        ("database: \x07", "there is a control character"),
    ],
)
def test_a_file_that_is_not_yaml_names_the_place_and_what_to_write(
    text: str, line: str, tmp_path: Path
) -> None:
    path = tmp_path / "midwatch.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load({}, path)
    shown = caught.value.one_line()
    assert "is not valid YAML" in shown and line in shown
    assert "hunter2" not in shown and "<" not in shown and "token" not in shown


def test_times_and_dates_are_text_and_merge_keys_may_be_overridden(
    tmp_path: Path,
) -> None:
    path = tmp_path / "midwatch.yaml"
    path.write_text("agent: &a {lease: 22:22}\nmonitor: {<<: *a, lease: 1h}")
    with pytest.raises(SettingsError, match="'22:22' is not a duration|unknown"):
        load({}, path)
    path.write_text("database: 2026-99-99")
    assert load({}, path).database == "2026-99-99"


def test_a_variable_of_another_program_is_left_alone() -> None:
    service = {
        "MIDWATCH_SERVICE_HOST": "10.0.0.1",
        "MIDWATCH_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "MIDWATCH_METRICS_PORT": "tcp://10.0.0.1:9090",
        "MIDWATCH_METRICS_SERVICE_PORT_HTTP": "9090",
        "MIDWATCH_VENV": "/opt/venv",
    }
    assert load(service) == load({})
    with pytest.raises(SettingsError, match="MIDWATCH_DATABSE"):
        load({"MIDWATCH_DATABSE": "sqlite://"})


def test_a_member_given_twice_in_a_variable_is_an_error() -> None:
    twice = '{"lease": "1m", "lease": "2m"}'
    with pytest.raises(SettingsError, match="'lease' is given twice"):
        load({"MIDWATCH_AGENT": twice}, None)


def test_a_share_is_not_a_percentage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="90 would be 9,000%; use 90% or 0.9"):
        parse_ratio(90)
    assert (parse_ratio("90%"), parse_ratio("0.9"), parse_ratio(1)) == (0.9, 0.9, 1)


def test_a_value_that_may_be_a_secret_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "midwatch.yaml"
    path.write_text("operator: {api_key_secret: hunter2}")
    with pytest.raises(SettingsError) as caught:
        load({}, path)
    assert "hunter2" not in caught.value.one_line()
    assert "the value is not a group" in caught.value.one_line()


def test_a_password_is_searched_for_in_any_text_of_a_database() -> None:
    known = Settings(database="postgresql://u:pw-of-db@db:5432/x")
    assert secrets_of(known, {}) == ["pw-of-db"]
    for wrong in ("postgresql://u:pw@[::1/db", "postgresql://u:pw@h:99999/db", "u@h"):
        assert secrets_of(Settings(database=wrong), {}) == []


def test_yes_is_not_a_limit() -> None:
    for unit in Unit:
        with pytest.raises(ValueError, match="use"):
            parse_limit(True, unit)
