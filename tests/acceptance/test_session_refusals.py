"""What a caller can get wrong: each one is one error of ours with a hint, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import pytest

from midwatch import AgenticSession, run_agentic_session, setup_workspace
from midwatch.errors import MidwatchError, NotFound
from midwatch.session import errors
from midwatch.session.events import Phase
from midwatch.session.log import read_events
from midwatch.session.options import ApiAccess
from midwatch.testing.fakes import KEY, collect, make_repository, options, session_in
from midwatch.testing.messages_api import Rule, ScriptedMessagesAPI
from midwatch.workspace import RepoSpec, WorkspaceOptions
from midwatch.workspace.errors import RepositoryNotFound, WorkspaceRefused

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"key": ""}, errors.KeyRefused, "no API key"),
        ({"key": "sk-secret\nsecond"}, errors.KeyRefused, "invalid characters"),
        ({"key": "sk-secret-\udcff"}, errors.KeyRefused, "invalid characters"),
        ({"prompt": " \n"}, errors.SessionRefused, "empty"),
        ({"prompt": "x" * 500_001}, errors.SessionRefused, "longer"),
        ({"workspace": []}, errors.SessionRefused, "no folder"),
        ({"main_repo_index": 1}, errors.SessionRefused, "main repository 1"),
        ({"main_repo_index": -1}, errors.SessionRefused, "main repository -1"),
        ({"session_id": "../../elsewhere"}, errors.SessionRefused, "id of a session"),
        ({"model": "--resume"}, errors.SessionRefused, "is not the name of a model"),
        ({"options": {"sandbox": "yes"}}, errors.SessionRefused, "auto, on, off"),
        ({"prompt": 3}, errors.SessionRefused, "prompt is of the type int"),
        ({"prompt": ["Look."]}, errors.SessionRefused, "prompt is of the type list"),
        ({"main_repo_index": "0"}, errors.SessionRefused, "main repository '0'"),
        ({"main_repo_index": True}, errors.SessionRefused, "main repository True"),
        ({"model": 3}, errors.SessionRefused, "is not the name of a model"),
        ({"options": {"allowed_tools": "Bash"}}, errors.SessionRefused, "tuple"),
        ({"options": {"allowed_tools": ("",)}}, errors.SessionRefused, "tuple"),
        (
            {"options": {"denied_tools": {"Bash"}}},
            errors.SessionRefused,
            "denied_tools",
        ),
        (
            {"options": {"permission_mode": "ask"}},
            errors.SessionRefused,
            "permission_mode",
        ),
        ({"options": {"effort": "most"}}, errors.SessionRefused, "effort"),
        ({"options": {"limits": {"max_turns": 0}}}, errors.SessionRefused, "max_turns"),
        (
            {"options": {"limits": {"wall": float("nan")}}},
            errors.SessionRefused,
            "wall",
        ),
        ({"options": {"mcp_servers": {"a": {}}}}, errors.SessionRefused, "MCP"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_meant_begins_nothing(
    tmp_path: Path, changes: dict[str, Any], kind: type[MidwatchError], said: str
) -> None:
    (tmp_path / "work").mkdir()
    given = {"prompt": "Look.", "key": KEY, "workspace": tmp_path / "work", **changes}
    given["options"] = options(**given.get("options", {}))
    prompt, workspace, key = (given.pop(n) for n in ("prompt", "workspace", "key"))
    with pytest.raises(kind) as raised:
        run_agentic_session(
            prompt, workspace, key, folder=tmp_path / "s", base_url=NOWHERE, **given
        )
    assert said in raised.value.one_line() and raised.value.hint
    assert "secret" not in raised.value.one_line()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("client", [None, KEY, anthropic.Anthropic, {}])
def test_what_is_no_client_is_named_by_its_type(tmp_path: Path, client: Any) -> None:
    with pytest.raises(errors.SessionRefused, match="client is of the type") as raised:
        AgenticSession(
            client=client, workspace=tmp_path / "work", folder=tmp_path / "s"
        )
    assert raised.value.hint and KEY not in raised.value.one_line()


@pytest.mark.parametrize("address", ["gateway.example", "ftp://gateway", "https://"])
def test_an_address_that_is_no_url_begins_nothing(tmp_path: Path, address: str) -> None:
    with pytest.raises(errors.SessionRefused, match="address of the API") as raised:
        run_agentic_session(
            "Look.", tmp_path / "work", KEY, base_url=address, folder=tmp_path / "s"
        )
    assert "ANTHROPIC_BASE_URL" in (raised.value.hint or "")


def test_a_session_that_has_not_run_has_results(tmp_path: Path) -> None:
    source, folder = make_repository(tmp_path / "remote"), tmp_path / "s"
    made = WorkspaceOptions(cache=tmp_path / "cache")
    paths = setup_workspace([RepoSpec(str(source))], tmp_path / "ws", options=made)
    session = AgenticSession(
        client=ApiAccess(KEY, NOWHERE),
        workspace=paths,
        folder=folder,
        workspace_options=made,
    )
    result = session.get_results()
    assert result.phase is Phase.PENDING and len(result.repositories) == 1
    assert not folder.exists()


@pytest.mark.parametrize("wrong", ["a file", "missing", "second missing"])
async def test_a_workspace_that_cannot_be_used_fails_the_session(
    tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "a file").write_text("")
    place = [tmp_path, tmp_path / "x"] if "second" in wrong else tmp_path / wrong
    folder = tmp_path.with_name(f"{tmp_path.name}-session")
    session = session_in(tmp_path, NOWHERE, workspace=place, folder=folder)
    with pytest.raises(errors.SessionRefused, match="cannot be used") as raised:
        await collect(session, "Look.")
    assert raised.value.hint and session.status().phase is Phase.FAILED


async def test_a_fork_of_nothing_does_not_pretend(tmp_path: Path) -> None:
    session = session_in(tmp_path, NOWHERE, session_id="new", forked_from="gone")
    with pytest.raises(NotFound, match="gone"):
        await collect(session, "Go on.")
    assert session.status().phase is Phase.FAILED


async def test_a_prompt_reaches_claude_as_it_was_written(tmp_path: Path) -> None:
    secret = "sk-ant-api03-" + "a1b2c3d4" * 6
    prompt = f"Use the key {secret}. " + "All of this text matters. " * 15_000
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        session = session_in(tmp_path, api)
        await collect(session, prompt)
        assert prompt.strip() in api.calls[0].prompt
    assert secret not in session.folder.outbox.read_text()


async def test_one_execute_at_a_time(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        session = session_in(tmp_path, api)
        first = session.execute("One.")
        await anext(first)
        with pytest.raises(errors.SessionBusy):
            await collect(session, "Two.")
        async for _ in first:
            pass
        assert (await session.get_results()).text == "Done."
        events = list(read_events(session.folder.outbox))
        assert len([event for event in events if event.type == "prompt"]) == 1


def test_an_iterator_that_outlives_its_session_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with ScriptedMessagesAPI(Rule("Done.", tools=True)) as api:
        with AgenticSession(
            client=ApiAccess(KEY, api.base_url),
            workspace=tmp_path / "work",
            folder=tmp_path / "session",
            options=options(),
        ) as session:
            events = session.execute("Look.")
            next(events)
        events.close()  # type: ignore[attr-defined]
    assert session.status().phase is Phase.STOPPED


async def test_the_main_repository_is_that_of_the_workspace(tmp_path: Path) -> None:
    repos = [make_repository(tmp_path / name, {"a": "1\n"}) for name in ("one", "two")]
    mine = WorkspaceOptions(cache=tmp_path / "cache")
    # Blocking, in a running loop, with paths as they are: as in a notebook.
    paths = setup_workspace(repos, tmp_path / "ws", 1, options=mine)
    places = {}
    for number, workspace in enumerate((paths, tmp_path / "ws", [paths[1], paths[0]])):
        session = session_in(
            tmp_path,
            NOWHERE,
            folder=tmp_path / f"s{number}",
            workspace=workspace,
            workspace_options=mine,
            options=options(program=tmp_path / "none"),
        )
        with pytest.raises(errors.ProgramMissing):
            await collect(session, "Look.")
        spec = (session.folder.path / "spec.json").read_text()
        places[number] = str(paths[1]) in spec.partition("directories")[0]
    assert places == {0: True, 1: True, 2: True}


@pytest.mark.parametrize(
    ("repos", "workspace", "main", "kind"),
    [
        ([], "ws", 0, WorkspaceRefused),
        ("https://example.org/app.git", "ws", 0, WorkspaceRefused),
        (["{good}"], "ws", 1, WorkspaceRefused),
        (["{good}"], "", 0, WorkspaceRefused),
        (["{good}"], "a\0b", 0, WorkspaceRefused),
        (["{good}"], "a\udc80b", 0, WorkspaceRefused),
        (["{file}"], "ws", 0, RepositoryNotFound),
    ],
)
def test_a_workspace_that_cannot_be_meant(
    tmp_path: Path, repos: Any, workspace: str, main: int, kind: type[MidwatchError]
) -> None:
    good = make_repository(tmp_path / "good.git", {"f": "1\n"})
    (tmp_path / "file").write_text("")
    if isinstance(repos, list):
        repos = [
            RepoSpec(url.format(good=good, file=tmp_path / "file")) for url in repos
        ]
    place = f"{tmp_path}/{workspace}" if workspace else ""
    with pytest.raises(kind) as raised:
        setup_workspace(
            repos, place, main, options=WorkspaceOptions(cache=tmp_path / "cache")
        )
    assert raised.value.hint and not (tmp_path / "ws").exists()
