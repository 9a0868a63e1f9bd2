"""The plan of a workspace: names, and what is refused before the disk is touched."""

from __future__ import annotations

import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.workspace.errors import WorkspaceExists, WorkspaceRefused
from midwatch.workspace.plan import RepoSpec, plan_workspace
from midwatch.workspace.urls import (
    check_folder_name,
    collision_key,
    derive_folder_name,
    is_ref_name,
    parse_remote,
)

WS = Path("/ws")


def names(*repos: RepoSpec | str) -> list[str]:
    return [repo.name for repo in plan_workspace(repos, WS).repos]


@pytest.mark.parametrize(
    ("repos", "expected"),
    [
        (["https://h/a/x.git", "git@h:b/y.git"], ["x", "y"]),
        (["https://h/a/x", "https://h/b/x.git"], ["a-x", "b-x"]),
        (["https://h/a/App", "https://h/b/app"], ["a-App", "b-app"]),
        (["https://one/a/x", "https://two/a/x"], ["a-x", "a-x-2"]),
        (
            [RepoSpec("https://h/a/x"), RepoSpec("https://h/b/y", name="x")],
            ["a-x", "x"],
        ),
        ([RepoSpec("https://h/x"), RepoSpec("https://h/x", branch="b")], ["x", "x-2"]),
        (["/srv/my repos/the app"], ["the-app"]),
        (["https://h/a/my%20app.git"], ["my-app"]),
        (["https://h/a/größe"], ["größe"]),
        (["https://h/a/con", "https://h/a/.git"], ["con-repo", "repository"]),
        (["ssh://git@h:22/~me/x.git", "file:///srv/y"], ["x", "y"]),
    ],
)
def test_folders(repos: list[RepoSpec | str], expected: list[str]) -> None:
    assert names(*repos) == expected
    assert plan_workspace(repos, WS).paths == [WS / name for name in expected]


def test_names_that_differ_only_in_case_or_form_collide() -> None:
    composed = "https://h/a/" + unicodedata.normalize("NFC", "Café")
    decomposed = "https://h/b/" + unicodedata.normalize("NFD", "café")
    assert names(composed, decomposed) == ["a-Café", "b-café"]
    with pytest.raises(WorkspaceExists):
        plan_workspace(["https://h/a/App"], WS, existing=["aPP"])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "--upload-pack=touch /tmp/x",
        "-x",
        "ext::sh -c evil",
        "fd::17",
        "::https://h/x",
        "git://h/x",
        "ftp://h/x",
        "rsync://h/x",
        "javascript://h/x",
        "https://h/../x",
        "https://h/%2e%2e/x",
        "git@h:../x",
        "file://host/x",
        "https://h/x%0aprotocol=https",
        "https://h/x\nhost=evil",
        "https://h/\u202egit.x",
        "https:///x",
        "https://h:port/x",
        "https://-oProxyCommand=x/y",
        "ssh://-oProxyCommand=x/y",
        "-oProxyCommand=x:y",
        "ssh://-l@h/y",
        "git@-h:y",
        "git@h:-y",
        "https://[::1/x",
        "https://h/" + "x" * 3000,
    ],
)
def test_refused_urls(url: str) -> None:
    with pytest.raises(WorkspaceRefused):
        plan_workspace([url], WS)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@h/x",
        "https://hunter2:@h/x",
        "https://h/x?private_token=hunter2",
        "https://h/x#hunter2",
        "ssh://me:hunter2@h/x",
        "me:hunter2@h:x",
        "https://me:hunter2@h/%0a",
        "ext::https://me:hunter2@h/x",
        "ftp://me:hunter2@h/x",
    ],
)
def test_a_password_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(WorkspaceRefused) as caught:
        plan_workspace([url], WS)
    assert "hunter2" not in caught.value.one_line()
    assert "hunter2" not in str(caught.value.__context__ or "")


@pytest.mark.parametrize(
    "spec",
    [
        RepoSpec("https://h/x", name="../x"),
        RepoSpec("https://h/x", name=".."),
        RepoSpec("https://h/x", name="/etc"),
        RepoSpec("https://h/x", name="a\\b"),
        RepoSpec("https://h/x", name=""),
        RepoSpec("https://h/x", name="-x"),
        RepoSpec("https://h/x", name=".GIT"),
        RepoSpec("https://h/x", name="NUL.txt"),
        RepoSpec("https://h/x", name="x\0"),
        RepoSpec("https://h/x", name="x "),
        RepoSpec("https://h/x", name="é" * 60),
        RepoSpec("https://h/x", branch="--upload-pack=x"),
        RepoSpec("https://h/x", branch="a..b"),
        RepoSpec("https://h/x", branch=""),
        RepoSpec("https://h/x", branch="a b"),
        RepoSpec("https://h/x", tag="x^{}"),
        RepoSpec("https://h/x", branch="a", tag="b"),
        RepoSpec("https://h/x", push_branch="x.lock"),
        RepoSpec("https://h/x", push_url="ext::x"),
        RepoSpec("https://h/x", depth=0),
    ],
)
def test_refused_specs(spec: RepoSpec) -> None:
    with pytest.raises(WorkspaceRefused):
        plan_workspace([spec], WS)


def test_refused_wholes() -> None:
    same = RepoSpec("https://h/x", name="n")
    for repos, main in (
        ([], 0),
        (["https://h/x"], 1),
        (["https://h/x"], -1),
        (["https://h/x", "https://h/x"], 0),
        ([same, RepoSpec("https://h/y", name="N")], 0),
        ([f"https://h/{n}" for n in range(65)], 0),
    ):
        with pytest.raises(WorkspaceRefused):
            plan_workspace(repos, WS, main)


def test_what_git_is_given() -> None:
    assert parse_remote("HTTPS://Host.Example/a b").url == "https://host.example/a%20b"
    assert parse_remote("git@Host:a/b.git").url == "git@host:a/b.git"
    local = parse_remote("/srv/a b/c%d")
    assert (local.url, local.transport_url) == (
        "/srv/a b/c%d",
        "file:///srv/a%20b/c%25d",
    )


ALPHABET = st.sampled_from("abZ0 .-_/@{}~^:?*[\\\x01é\t") | st.characters(
    exclude_categories=["Cs"]
)


@given(st.text(ALPHABET, max_size=12))
def test_every_derived_name_is_a_name_for_a_folder(text: str) -> None:
    name = derive_folder_name(text.split("/") or [""])
    assert check_folder_name(name) == name
    assert collision_key(collision_key(name)) == collision_key(name)


@pytest.mark.integration
def test_branch_rules_are_never_laxer_than_gits_own() -> None:
    pool = [
        "a",
        "A/b",
        "a.b",
        ".a",
        "a.",
        "a/.b",
        "a.lock",
        "a.lock/b",
        "a//b",
        "/a",
        "a/",
    ]
    pool += [
        "@",
        "a@{b",
        "a@b",
        "a~1",
        "a^",
        "a:b",
        "a?",
        "a*",
        "a[b",
        "a\\b",
        "a b",
        "-a",
    ]
    pool += [
        "a..b",
        "a\x7f",
        "é",
        "HEAD",
        "a-",
        "refs/heads/x",
        "a/-b",
        "@/a",
        "x" * 190,
    ]
    for name in pool:
        check = ["git", "check-ref-format", "--branch", name]
        gits = subprocess.run(check, capture_output=True, cwd="/").returncode == 0
        assert gits or not is_ref_name(name), name
        assert is_ref_name(name) or not gits or name in ("HEAD", "@"), name
