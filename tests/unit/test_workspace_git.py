"""Errors, progress and output of git, and its environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from midwatch.workspace.environment import Credential, GitEnvironment, git_variables
from midwatch.workspace.errors import (
    GitFailed,
    GitTimedOut,
    NoSuchBranch,
    NotAuthorised,
    PushRejected,
    RepositoryCorrupted,
    RepositoryError,
    RepositoryNotFound,
    RepositoryUnreachable,
    WorkspaceDiskFull,
    WorkspaceRefused,
)
from midwatch.workspace.git import Progress, map_git_error, parse_progress
from midwatch.workspace.inspect import FileChange, parse_changes, printable
from midwatch.workspace.refs import config_text, parse_advertised
from midwatch.workspace.urls import parse_remote

URL = "https://h/x"


@pytest.mark.parametrize(
    ("message", "kind", "cause"),
    [
        (
            "fatal: unable to access 'https://h/x/': Could not resolve host: h",
            RepositoryUnreachable,
            "Could not resolve host",
        ),
        (
            "ssh: connect to host h port 22: Connection refused\r\n"
            "fatal: Could not read from remote repository.\n",
            RepositoryUnreachable,
            "Connection refused",
        ),
        (
            "git@h: Permission denied (publickey).\r\nfatal: Could not read from remote repository.",
            NotAuthorised,
            "publickey",
        ),
        (
            "Host key verification failed.\nfatal: Could not read from remote repository.",
            NotAuthorised,
            "Host key",
        ),
        (
            "fatal: could not read Username for 'https://h': terminal prompts disabled",
            NotAuthorised,
            "Username",
        ),
        (
            "remote: Write access to repository not granted.\n"
            "fatal: unable to access 'https://h/x/': The requested URL returned error: 403",
            NotAuthorised,
            "not granted",
        ),
        ("fatal: repository 'https://h/x/' not found", RepositoryNotFound, "not found"),
        (
            "fatal: '/x' does not appear to be a git repository\n"
            "fatal: Could not read from remote repository.",
            RepositoryNotFound,
            "appear",
        ),
        (
            "fatal: unable to access 'u': Operation too slow. Less than 1000 bytes/sec",
            GitTimedOut,
            "too slow",
        ),
        (
            "fatal: Remote branch b not found in upstream origin",
            NoSuchBranch,
            "branch b",
        ),
        (
            "fatal: write error: No space left on device\nfatal: early EOF",
            WorkspaceDiskFull,
            "No space",
        ),
        (
            "error: inflate: data stream error (incorrect data check)",
            RepositoryCorrupted,
            "",
        ),
        (
            "error: file m/objects/pack/pack-1.pack is far too short to be a packfile",
            RepositoryCorrupted,
            "far too short",
        ),
        (
            "!\tabc:refs/heads/m\t[rejected] (non-fast-forward)\nerror: failed to push",
            PushRejected,
            "non-fast-forward",
        ),
        (
            "remote: GH006: Protected branch update failed\n"
            "!\tabc:refs/heads/m\t[remote rejected] (protected branch hook declined)",
            PushRejected,
            "",
        ),
        (
            "fatal: detected dubious ownership in repository at '/x'",
            NotAuthorised,
            "dubious",
        ),
        ("fatal: something new", GitFailed, "something new"),
    ],
)
def test_faults(message: str, kind: type[RepositoryError], cause: str) -> None:
    error = map_git_error(URL, message, 128, "b")
    assert type(error) is kind
    assert cause in error.cause
    line = error.one_line()
    assert URL in line and "branch b" in line and "\n" not in line and error.hint


def test_no_url_with_a_password_leaves_a_fault() -> None:
    message = "fatal: unable to access 'https://me:hunter2@h/x/': Connection refused"
    assert "hunter2" not in map_git_error(URL, message, 128).one_line()


def test_progress() -> None:
    line = "Receiving objects:  42% (420/1000), 12.30 MiB | 4.10 MiB/s"
    assert parse_progress("r", line) == Progress(
        "r", "receiving", 42, "12.30 MiB | 4.10 MiB/s"
    )
    done = "remote: Counting objects: 100% (3/3), done."
    assert parse_progress("r", done) == Progress("r", "counting", 100)
    assert parse_progress("r", "fatal: no") is None


def test_advertised() -> None:
    oid = "a" * 40
    text = f"ref: refs/heads/main\tHEAD\n{oid}\tHEAD\n{oid}\trefs/heads/main\n"
    text += f"{oid}\trefs/tags/v1\n{oid}\trefs/tags/v1^{{}}\n{oid}\trefs/pull/1/head\n"
    text += f"nonsense\n{oid}\trefs/heads/../../x\n"
    found = parse_advertised(text)
    assert found.default_branch == "main"
    assert dict(found.refs) == {"refs/heads/main": oid, "refs/tags/v1": oid}


def test_a_token_goes_only_to_its_own_host_and_not_into_settings() -> None:
    token = Credential("https://git.example", "hunter2")
    environment = GitEnvironment(home=Path("/home/me"), credentials=(token,))

    def variables(url: str) -> dict[str, str]:
        return git_variables(environment, parse_remote(url), "https", 1, 1)

    right = variables("https://git.example/a/b")
    assert [k for k, v in right.items() if "hunter2" in v] == ["MIDWATCH_GIT_TOKEN"]
    for url in ("https://other.example/a", "http://git.example/a", "git@git.example:a"):
        assert "hunter2" not in str(variables(url))
    assert "hunter2" not in repr(environment)
    assert environment.redact("x hunter2 y") == "x *** y"


def test_the_environment_is_built_not_inherited() -> None:
    environ = {"PATH": "/bin", "HOME": "/h", "SSH_AUTH_SOCK": "/s", "SECRET": "x"}
    environment = GitEnvironment.from_environ(environ | {"GIT_DIR": "/evil"})
    ssh = git_variables(environment, parse_remote("git@h:x"), "ssh", 1, 1)
    assert ssh["SSH_AUTH_SOCK"] == "/s" and ssh["HOME"] == "/h"
    assert "SECRET" not in ssh and "GIT_DIR" not in ssh
    assert ssh["GIT_SSH_COMMAND"].startswith("ssh -o 'UserKnownHostsFile=")
    local = git_variables(environment, None, "none", 1, 1)
    assert "SSH_AUTH_SOCK" not in local and local["HOME"] == "/nonexistent"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("ssh -i key", "ssh -i key -o BatchMode=yes"),
        ("/usr/bin/ssh", "/usr/bin/ssh -o BatchMode=yes"),
        ("plink -batch", "plink -batch"),  # it knows none of the options of OpenSSH
    ],
)
def test_the_command_for_ssh(given: str, wanted: str) -> None:
    environment = GitEnvironment.from_environ({"GIT_SSH_COMMAND": given})
    remote = parse_remote("git@h:x")
    found = git_variables(environment, remote, "ssh", 1, 1)["GIT_SSH_COMMAND"]
    assert found.startswith(wanted) and ("-o" in found) == ("-o" in wanted)
    submodules = git_variables(
        environment, parse_remote("https://h/x"), "https:ssh", 1, 1
    )
    assert submodules["GIT_SSH_COMMAND"] == found
    # What git connects to by itself stays within the protocols, and what git-lfs connects to as well.
    for url in ("https://h/x", "/srv/x"):
        other = git_variables(environment, parse_remote(url), "https", 1, 1)
        assert other["GIT_SSH_COMMAND"] == "false"


def test_each_token_has_a_scope_of_its_own_for_submodules() -> None:
    tokens = ("https://a.example", "https://b.example", "https://a.example/team")
    credentials = [Credential(one, f"hunter-{n}") for n, one in enumerate(tokens)]
    environment = GitEnvironment(credentials=tuple(credentials))
    remote = parse_remote("https://a.example/team/x")
    one = git_variables(environment, remote, "https", 1, 1)
    assert [v for v in one.values() if "hunter" in v] == ["hunter-2"]
    assert environment.credential_for(parse_remote("https://a.example/teams/x")) == (
        credentials[0]
    )
    found = git_variables(environment, remote, "https", 1, 1, all_credentials=True)
    assert sorted(v for v in found.values() if "hunter" in v) == [
        "hunter-0",
        "hunter-1",
        "hunter-2",
    ]
    keys = [v for k, v in found.items() if k.startswith("GIT_CONFIG_KEY_")]
    helpers = [key for key in keys if key.endswith(".helper") and "://" in key]
    assert helpers == [f"credential.{tokens[n]}.helper" for n in (2, 0, 1)]


@pytest.mark.parametrize(
    ("scope", "token"),
    [
        ("github.com", "t"),
        ("https://me@github.com", "t"),
        ("git@github.com:org", "t"),
        ("https://me:x@github.com", "t"),
        ("https://github.com", "a\nhost=evil"),
        ("https://github.com", ""),
    ],
)
def test_refused_credentials(scope: str, token: str) -> None:
    with pytest.raises(WorkspaceRefused) as caught:
        Credential(scope, token)
    assert "host=evil" not in caught.value.one_line()


def test_a_setting_cannot_begin_a_section() -> None:
    text = config_text([("remote", 'o"]x', "url", 'a"\\b')])
    assert text == '[remote "o\\"]x"]\n\turl = "a\\"\\\\b"\n'
    with pytest.raises(ValueError, match="line break"):
        config_text([("remote", "o", "url", "a\n[core]\n")])


def test_changes() -> None:
    raw = b":100644 100644 a b M\0x\ty\0:000000 100644 0 c A\0bin\0"
    assert parse_changes(raw + b"1\t2\tx\ty\0-\t-\tbin\0") == (
        FileChange("x\ty", "changed", 1, 2),
        FileChange("bin", "added", None, None),
    )


def test_control_characters_become_visible() -> None:
    assert printable("a\x1b[2J\r\nb\rc\t") == "a\u241b[2J\r\nb\u240dc\t"
    assert (
        printable("if x\u200b: # \u202e\u2066é") == "if x<U+200B>: # <U+202E><U+2066>é"
    )
