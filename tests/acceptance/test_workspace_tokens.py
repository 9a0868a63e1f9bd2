"""A token goes only to the host and the path that it is for: not to submodules, redirects or Git LFS elsewhere.

`home_host` has the repository and asks for the token. `other_host` asks for a password as well, so that a client
that had the token for it would send it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from midwatch.errors import MidwatchError, SettingsError
from midwatch.kube.environment import sorted_variables
from midwatch.kube.runner_task import PodTask, read_task
from midwatch.testing.fakes import add_commit, make_repository, run_git
from midwatch.workspace.environment import PASSED_ON, Credential, GitEnvironment
from midwatch.workspace.errors import NotAuthorised, RepositoryError, RepositoryNotFound
from midwatch.workspace.git import GitLimits
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.push import push_repo
from midwatch.workspace.record import open_workspace
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

from ..git_servers import GitHost, add_submodules, git_host, needs_lfs

TOKEN, OTHER_TOKEN = "tok-home-5e1f", "tok-other-77aa"


@pytest.fixture
def home_host(tmp_path: Path) -> Iterator[GitHost]:
    make_repository(tmp_path / "home/org/x.git", {"f": "1\n"})
    with git_host(tmp_path / "home", TOKEN) as running:
        yield running


@pytest.fixture
def other_host(tmp_path: Path) -> Iterator[GitHost]:
    make_repository(tmp_path / "other/org/y.git", {"g": "1\n"})
    with git_host(tmp_path / "other", OTHER_TOKEN) as running:
        yield running


def options(tmp_path: Path, *credentials: Credential) -> WorkspaceOptions:
    return WorkspaceOptions(
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        environment=GitEnvironment(os.environ["PATH"], credentials=credentials),
        limits=GitLimits(attempts=1),
    )


async def clone(tmp_path: Path, spec: RepoSpec | str, chosen: WorkspaceOptions) -> Path:
    [path] = await setup_workspace_async([spec], tmp_path / "ws", options=chosen)
    return path


def home_only(tmp_path: Path, host: GitHost, path: str = "") -> WorkspaceOptions:
    return options(tmp_path, Credential(host.url + path, TOKEN))


# ------------------------------------------------------------------ the URL


async def test_a_user_name_in_the_url_does_not_keep_the_token_away(
    tmp_path: Path, home_host: GitHost
) -> None:
    url = f"{home_host.url}/org/x.git"
    pasted = url.replace("http://", "http://me@")
    path = await clone(tmp_path, f"{pasted}@main", home_only(tmp_path, home_host))
    assert (path / "f").read_text() == "1\n"
    assert run_git(path, "config", "remote.origin.url") == url
    assert home_host.saw(TOKEN)


@pytest.mark.parametrize("scope", ["/My%20Org", "/My Org/project"])
async def test_spaces_as_in_azure_devops(
    tmp_path: Path, home_host: GitHost, scope: str
) -> None:
    make_repository(home_host.root / "My Org/project/_git/a b", {"f": "1\n"})
    pasted = home_host.url.replace("://", "://org@")
    pasted += "/My%20Org/project/_git/a%20b@main"
    path = await clone(tmp_path, pasted, home_only(tmp_path, home_host, scope))
    assert path.name == "a-b" and (path / "f").read_text() == "1\n"


async def test_a_token_for_a_path_is_not_for_the_rest_of_the_host(
    tmp_path: Path, home_host: GitHost
) -> None:
    chosen = home_only(tmp_path, home_host, "/org")
    assert await clone(tmp_path, f"{home_host.url}/org/x.git", chosen)
    assert home_host.saw(TOKEN)
    make_repository(home_host.root / "organisation/x.git", {"f": "1\n"})
    for path in ("organisation/x.git", "x.git"):
        home_host.requests.clear()
        fresh = replace(chosen, state=tmp_path / "state2")
        with pytest.raises(NotAuthorised):
            await setup_workspace_async(
                [f"{home_host.url}/{path}"], tmp_path / "ws2", options=fresh
            )
        assert home_host.requests and not home_host.saw(TOKEN)


async def test_of_two_tokens_for_a_host_the_more_specific_one_is_used(
    tmp_path: Path, home_host: GitHost
) -> None:
    chosen = options(
        tmp_path,
        Credential(home_host.url, OTHER_TOKEN),
        Credential(f"{home_host.url}/org", TOKEN),
    )
    assert await clone(tmp_path, f"{home_host.url}/org/x.git", chosen)
    assert not home_host.saw(OTHER_TOKEN)


# ------------------------------------------------------------------ redirects


@pytest.mark.parametrize("credentials", [1, 2])
async def test_a_redirect_to_another_host(
    tmp_path: Path, home_host: GitHost, other_host: GitHost, credentials: int
) -> None:
    """Not with a token of its own either: the repository that was asked for is not there."""
    known = [Credential(home_host.url, TOKEN), Credential(other_host.url, OTHER_TOKEN)]
    home_host.moved["/org/moved.git"] = f"{other_host.url}/org/y.git"
    with pytest.raises(RepositoryError):
        await clone(
            tmp_path,
            f"{home_host.url}/org/moved.git",
            options(tmp_path, *known[:credentials]),
        )
    assert other_host.requests
    assert not other_host.saw(TOKEN) and not other_host.saw(OTHER_TOKEN)


async def test_a_redirect_after_the_token_was_asked_for(
    tmp_path: Path, home_host: GitHost, other_host: GitHost
) -> None:
    other_host.token = None  # it serves everyone, and must still not see the token
    home_host.moved_after_login["/org/moved.git"] = f"{other_host.url}/org/y.git"
    with pytest.raises(RepositoryNotFound) as caught:
        await clone(
            tmp_path, f"{home_host.url}/org/moved.git", home_only(tmp_path, home_host)
        )
    assert "another URL" in caught.value.hint
    assert home_host.saw(TOKEN)
    assert other_host.requests and not other_host.saw(TOKEN)


async def test_a_repository_that_moved_to_another_host(
    tmp_path: Path, home_host: GitHost, other_host: GitHost
) -> None:
    other_host.token = None
    home_host.moved["/org/moved.git"] = f"{other_host.url}/org/y.git"
    path = await clone(
        tmp_path, f"{home_host.url}/org/moved.git", home_only(tmp_path, home_host)
    )
    assert (path / "g").read_text() == "1\n"
    assert not other_host.saw(TOKEN)


async def test_a_redirect_of_a_push(
    tmp_path: Path, home_host: GitHost, other_host: GitHost
) -> None:
    chosen = home_only(tmp_path, home_host)
    path = await clone(tmp_path, f"{home_host.url}/org/x.git", chosen)
    (path / "f").write_text("2\n")
    home_host.moved["/org/x.git"] = f"{other_host.url}/org/y.git"
    result = await push_repo(open_workspace(tmp_path / "state").repos[0], chosen.git())
    assert result.outcome == "failed"
    assert other_host.requests and not other_host.saw(TOKEN)


async def test_a_redirect_out_of_the_path(tmp_path: Path, home_host: GitHost) -> None:
    make_repository(home_host.root / "victim/z.git", {"f": "1\n"})
    home_host.moved["/org/moved.git"] = f"{home_host.url}/victim/z.git"
    with pytest.raises(NotAuthorised):
        await clone(
            tmp_path,
            f"{home_host.url}/org/moved.git",
            home_only(tmp_path, home_host, "/org"),
        )
    assert not home_host.saw(TOKEN)


# ------------------------------------------------------------------ submodules


async def test_submodules_of_the_same_host_get_the_token(
    tmp_path: Path, home_host: GitHost
) -> None:
    lib = make_repository(home_host.root / "org/lib.git", {"l": "lib\n"})
    inner = make_repository(home_host.root / "org/x.git/in.git", {"i": "in\n"})
    modules = {"lib": ("../lib.git", lib), "in": ("./in.git", inner)}
    add_submodules(home_host.root / "org/x.git", modules)
    spec = RepoSpec(f"{home_host.url}/org/x.git", submodules=True)
    path = await clone(tmp_path, spec, home_only(tmp_path, home_host, "/org"))
    assert (path / "lib/l").read_text() == "lib\n"
    assert (path / "in/i").read_text() == "in\n"


async def test_relative_submodules_of_a_local_repository(tmp_path: Path) -> None:
    lib = make_repository(tmp_path / "srv/lib.git", {"l": "lib\n"})
    outer = make_repository(tmp_path / "srv/x.git", {"f": "1\n"})
    add_submodules(outer, {"lib": ("../lib.git", lib)})
    for number, url in enumerate((str(outer), f"file://{outer}")):
        chosen = replace(options(tmp_path), state=tmp_path / f"state{number}")
        [path] = await setup_workspace_async(
            [RepoSpec(url, submodules=True)], tmp_path / f"ws{number}", options=chosen
        )
        assert (path / "lib/l").read_text() == "lib\n"


async def test_a_submodule_on_another_host_does_not_get_the_token(
    tmp_path: Path, home_host: GitHost, other_host: GitHost
) -> None:
    url = f"{other_host.url}/org/y.git"
    add_submodules(
        home_host.root / "org/x.git", {"y": (url, other_host.root / "org/y.git")}
    )
    spec = RepoSpec(f"{home_host.url}/org/x.git", submodules=True)
    with pytest.raises(NotAuthorised) as caught:
        await clone(tmp_path, spec, home_only(tmp_path, home_host))
    assert other_host.requests and not other_host.saw(TOKEN)
    assert TOKEN not in caught.value.one_line()

    # With a token of its own it gets that one.
    both = options(
        tmp_path,
        Credential(home_host.url, TOKEN),
        Credential(other_host.url, OTHER_TOKEN),
    )
    path = await clone(tmp_path, spec, both)
    assert (path / "y/g").read_text() == "1\n"
    assert not other_host.saw(TOKEN) and not home_host.saw(OTHER_TOKEN)


@pytest.mark.parametrize(
    "url",
    ["../../victim/z.git", "{}/org/../victim/z.git", "{}/org/%2e%2e/victim/z.git"],
)
async def test_a_submodule_elsewhere_on_the_host_does_not_get_the_token_of_a_path(
    tmp_path: Path, home_host: GitHost, url: str
) -> None:
    victim = make_repository(home_host.root / "victim/z.git", {"secret": "1\n"})
    modules = {"z": (url.format(home_host.url), victim)}
    add_submodules(home_host.root / "org/x.git", modules)
    spec = RepoSpec(f"{home_host.url}/org/x.git", submodules=True)
    with pytest.raises(NotAuthorised):
        await clone(tmp_path, spec, home_only(tmp_path, home_host, "/org"))
    with_token = [r.path for r in home_host.requests if r.password == TOKEN]
    assert with_token and all("victim" not in path for path in with_token)


async def test_a_submodule_by_another_protocol_is_refused(
    tmp_path: Path, home_host: GitHost
) -> None:
    secret = make_repository(tmp_path / "secret.git", {"secret": "1\n"})
    for url in (str(secret), f"file://{secret}", "ext::sh -c evil"):
        add_submodules(home_host.root / "org/x.git", {"z": (url, secret)})
        spec = RepoSpec(f"{home_host.url}/org/x.git", submodules=True)
        with pytest.raises(MidwatchError):
            await clone(tmp_path, spec, home_only(tmp_path, home_host))
        assert not (tmp_path / "ws").exists()


# ------------------------------------------------------------------ Git LFS


@needs_lfs
@pytest.mark.parametrize("path", ["", "/org"])
async def test_git_lfs_of_the_same_host_gets_the_token(
    tmp_path: Path, home_host: GitHost, path: str
) -> None:
    home_host.add_lfs_file(home_host.root / "org/x.git", "a.bin", b"content\n")
    spec = RepoSpec(f"{home_host.url}/org/x.git", lfs=True)
    chosen = home_only(tmp_path, home_host, path)
    home_host.object_header = {"Authorization": "Signed 1"}
    clone_path = await clone(tmp_path, spec, chosen)
    assert (clone_path / "a.bin").read_bytes() == b"content\n"
    assert run_git(clone_path, "config", "remote.origin.url") == spec.url
    batch = [r for r in home_host.requests if r.path.endswith("/objects/batch")]
    assert batch[-1].password == TOKEN
    assert TOKEN not in (clone_path / ".git/config").read_text()


@needs_lfs
async def test_git_lfs_whose_host_refuses_the_token_is_asked_a_few_times_only(
    tmp_path: Path, home_host: GitHost
) -> None:
    home_host.add_lfs_file(home_host.root / "org/x.git", "a.bin", b"content\n")
    home_host.lfs_token = OTHER_TOKEN
    spec = RepoSpec(f"{home_host.url}/org/x.git", lfs=True)
    with pytest.raises(NotAuthorised):
        await clone(tmp_path, spec, home_only(tmp_path, home_host))
    batch = [r for r in home_host.requests if r.path.endswith("/objects/batch")]
    assert 1 <= len(batch) < 10 and batch[-1].password == TOKEN
    assert not (tmp_path / "ws").exists() and not (tmp_path / "state").exists()


@needs_lfs
async def test_git_lfs_configured_at_another_host_does_not_get_the_token(
    tmp_path: Path, home_host: GitHost, other_host: GitHost
) -> None:
    bare = home_host.root / "org/x.git"
    home_host.add_lfs_file(bare, "a.bin", b"content\n")
    other_host.content = home_host.content
    config = f"[lfs]\n\turl = {other_host.url}/org/y.git/info/lfs\n"
    add_commit(bare, {".lfsconfig": config}, "elsewhere")
    spec = RepoSpec(f"{home_host.url}/org/x.git", lfs=True)
    with pytest.raises(NotAuthorised) as caught:
        await clone(tmp_path, spec, home_only(tmp_path, home_host))
    assert other_host.requests and not other_host.saw(TOKEN)
    assert TOKEN not in caught.value.one_line()
    assert not (tmp_path / "ws").exists()


@needs_lfs
async def test_files_of_git_lfs_at_another_host_are_fetched_without_the_token(
    tmp_path: Path, home_host: GitHost, other_host: GitHost
) -> None:
    """As object storage with signed URLs."""
    home_host.add_lfs_file(home_host.root / "org/x.git", "a.bin", b"content\n")
    other_host.content = home_host.content
    home_host.object_base = other_host.url
    spec = RepoSpec(f"{home_host.url}/org/x.git", lfs=True)
    with pytest.raises(RepositoryError):  # it asks for a password, and there is none
        await clone(tmp_path, spec, home_only(tmp_path, home_host))
    assert other_host.requests and not other_host.saw(TOKEN)
    other_host.token = None
    path = await clone(tmp_path, spec, home_only(tmp_path, home_host))
    assert (path / "a.bin").read_bytes() == b"content\n"
    assert not other_host.saw(TOKEN)


@needs_lfs
@pytest.mark.parametrize("part", ["/org/x.git/info/lfs", "/lfs-objects"])
async def test_a_redirect_of_git_lfs_to_another_host(
    tmp_path: Path, home_host: GitHost, other_host: GitHost, part: str
) -> None:
    home_host.add_lfs_file(home_host.root / "org/x.git", "a.bin", b"content\n")
    other_host.content = home_host.content
    other_host.token = None
    home_host.moved_after_login[part] = other_host.url + part
    spec = RepoSpec(f"{home_host.url}/org/x.git", lfs=True)
    with pytest.raises(NotAuthorised):  # git-lfs wants credentials for every redirect
        await clone(tmp_path, spec, home_only(tmp_path, home_host))
    assert home_host.saw(TOKEN) and not other_host.saw(TOKEN)


# ------------------------------------------------------------------ in a pod


def pod_task(urls: list[str], **secret: str) -> PodTask:
    repos = [{"input": {"url": url}} for url in urls]
    given = {
        "SESSION_NAME": "fix",
        "STATUS": "none",
        "REPOS_JSON": json.dumps(repos),
        "PROMPT": "Do it.",
        "ANTHROPIC_API_KEY": "key",
    }
    given |= {f"SESSION_SECRET_{name}": value for name, value in secret.items()}
    return read_task(sorted_variables(given))


async def test_the_token_of_a_secret_goes_to_the_host_that_the_secret_names(
    tmp_path: Path, home_host: GitHost, other_host: GitHost
) -> None:
    urls = [f"{home_host.url}/org/x.git", f"{other_host.url}/org/y.git"]
    chosen = options(
        tmp_path, *pod_task(urls, GIT_TOKEN=TOKEN, GIT_HOST=home_host.url).credentials
    )
    with pytest.raises(NotAuthorised, match="y.git"):
        await setup_workspace_async(urls, tmp_path / "ws", options=chosen)
    assert other_host.requests and not other_host.saw(TOKEN)
    other_host.token = None
    await setup_workspace_async(urls, tmp_path / "ws", options=chosen)
    assert home_host.saw(TOKEN) and not other_host.saw(TOKEN)


@pytest.mark.parametrize(
    ("urls", "host", "scope"),
    [
        (["https://a.example/x", "https://b.example/y"], "https://b.example", None),
        (["https://a.example/x", "https://b.example/y"], "b.example", None),
        (["https://b.example/x"], "https://b.example/team", "https://b.example/team"),
        (["https://b.example/x", "git@a.example:y", "https://b.example/z"], "", None),
    ],
)
def test_what_the_token_of_a_secret_is_for(
    urls: list[str], host: str, scope: str | None
) -> None:
    [found] = pod_task(urls, GIT_TOKEN=TOKEN, GIT_HOST=host).credentials
    wanted = scope or "https://b.example"
    assert (found.scope, found.token) == (wanted, TOKEN)


def test_a_token_that_could_be_for_several_hosts_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="GIT_TOKEN.*a.example, b.example"
    ) as caught:
        pod_task(["https://a.example/x", "https://b.example/y"], GIT_TOKEN=TOKEN)
    assert "GIT_HOST" in caught.value.hint and TOKEN not in caught.value.one_line()
    with pytest.raises(SettingsError, match="GIT_HOST"):
        pod_task(["https://a.example/x"], GIT_TOKEN=TOKEN, GIT_HOST="git@a.example:x")


def test_a_resource_has_no_say_in_where_git_connects() -> None:
    steering = {name: "evil" for name in PASSED_ON}
    given = {"PATH": "/bin", "https_proxy": "http://proxy.example"}
    for prefix in ("SESSION_VARIABLE_", "SESSION_SECRET_"):
        asked = {prefix + name: value for name, value in steering.items()}
        variables = sorted_variables({**given, **asked, f"{prefix}A_TOKEN": "t"})
        environment = GitEnvironment.from_environ(variables.of_git)
        assert environment.variables == {"https_proxy": "http://proxy.example"}
        assert variables.of_git["A_TOKEN"] == "t"
