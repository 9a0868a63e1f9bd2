"""SSH through a real `sshd` on loopback: keys, known hosts, ports, submodules and Git LFS."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from midwatch.testing.fakes import make_repository, run_git
from midwatch.workspace.environment import GitEnvironment
from midwatch.workspace.errors import (
    GitFailed,
    NotAuthorised,
    RepositoryNotFound,
    RepositoryUnreachable,
)
from midwatch.workspace.git import Git, GitLimits
from midwatch.workspace.plan import RepoSpec
from midwatch.workspace.push import push_repo
from midwatch.workspace.record import open_workspace
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

from ..git_servers import (
    SshServer,
    add_submodules,
    git_host,
    needs_lfs,
    needs_ssh,
    ssh_server,
)

pytestmark = needs_ssh


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The folder of the repositories."""
    make_repository(tmp_path / "served/team/x.git", {"f": "1\n"})
    return tmp_path / "served"


@pytest.fixture
def server(tmp_path: Path, served: Path) -> Iterator[SshServer]:
    with ssh_server(tmp_path / "sshd", served) as running:
        yield running


def options(tmp_path: Path, home: Path | None, **environ: str) -> WorkspaceOptions:
    environment = GitEnvironment.from_environ({**environ, "PATH": os.environ["PATH"]})
    return WorkspaceOptions(
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        session="s1",
        environment=GitEnvironment(
            environment.path, home or tmp_path / "no-home", environment.variables
        ),
        limits=GitLimits(attempts=1),
    )


async def clone(tmp_path: Path, spec: RepoSpec | str, chosen: WorkspaceOptions) -> Path:
    [path] = await setup_workspace_async([spec], tmp_path / "ws", options=chosen)
    return path


async def test_a_port_in_the_url_and_the_keys_of_the_home_folder(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    chosen = options(tmp_path, server.make_home(tmp_path / "home of me, 100%h"))
    url = server.url(served / "team/x.git")
    path = await clone(tmp_path, f"{url}@main", chosen)
    assert (path / "f").read_text() == "1\n"
    assert run_git(path, "config", "remote.origin.url") == url

    (path / "f").write_text("2\n")
    repo = open_workspace(tmp_path / "state").repos[0]
    pushed = await push_repo(repo, chosen.git())
    assert pushed.outcome == "pushed", pushed.error
    assert run_git(served / "team/x.git", "show", "midwatch/s1:f") == "2"
    commands = [one.split()[0] for one in server.commands]
    assert commands.count("git-receive-pack") == 1 and "git-upload-pack" in commands


async def test_user_at_host_and_the_configuration_of_ssh(
    tmp_path: Path, server: SshServer
) -> None:
    alias = f"Host forge\n  HostName 127.0.0.1\n  Port {server.port}\n"
    chosen = options(tmp_path, server.make_home(tmp_path / "home", config=alias))
    url = f"{server.user}@forge:team/x.git"
    path = await clone(tmp_path, url, chosen)
    assert (path / "f").read_text() == "1\n"
    assert run_git(path, "config", "remote.origin.url") == url
    assert "git-upload-pack 'team/x.git'" in server.commands


async def test_an_unknown_host_is_refused_and_stays_unknown(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    home = server.make_home(tmp_path / "home", known=False)
    url = server.url(served / "team/x.git")
    with pytest.raises(NotAuthorised, match="Host key verification failed") as caught:
        await clone(tmp_path, url, options(tmp_path, home))
    assert "not in known_hosts" in caught.value.hint and url in caught.value.one_line()
    assert (home / ".ssh/known_hosts").read_text() == ""
    assert server.commands == [] and not (tmp_path / "ws").exists()


async def test_a_host_with_another_key_than_before(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    home = server.make_home(tmp_path / "home")
    server.renew_host_key()
    with pytest.raises(NotAuthorised) as caught:
        await clone(
            tmp_path, server.url(served / "team/x.git"), options(tmp_path, home)
        )
    assert "someone may listen" in caught.value.hint
    assert server.commands == []


async def test_a_key_that_the_host_does_not_accept(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    home = server.make_home(tmp_path / "home")
    (server.folder / "authorized_keys").write_text("")
    with pytest.raises(NotAuthorised, match="Permission denied") as caught:
        await clone(
            tmp_path, server.url(served / "team/x.git"), options(tmp_path, home)
        )
    assert "SSH agent" in caught.value.hint


async def test_a_repository_that_is_not_there(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    chosen = options(tmp_path, server.make_home(tmp_path / "home"))
    with pytest.raises(RepositoryNotFound):
        await clone(tmp_path, server.url(served / "team/y.git"), chosen)


async def test_a_port_where_nothing_listens(tmp_path: Path, server: SshServer) -> None:
    chosen = options(tmp_path, server.make_home(tmp_path / "home"))
    with pytest.raises(RepositoryUnreachable):
        await clone(tmp_path, f"ssh://{server.user}@127.0.0.1:1/x.git", chosen)


async def test_a_key_by_git_ssh_command(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    known = tmp_path / "known hosts"
    known.write_text(server.known_hosts)
    command = f"ssh -F none -i {server.key} -o 'UserKnownHostsFile=\"{known}\"'"
    chosen = options(tmp_path, None, GIT_SSH_COMMAND=command)
    path = await clone(tmp_path, server.url(served / "team/x.git"), chosen)
    assert (path / "f").read_text() == "1\n"


async def test_a_key_by_an_agent(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    socket = tmp_path / "agent"
    if len(str(socket)) > 100:  # a socket's path has at most 107 bytes
        pytest.skip("the temporary folder's path is too long for a socket")
    home = server.make_home(tmp_path / "home")
    (home / ".ssh/id_ed25519").unlink()
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=-1)
    try:
        assert agent.stdout is not None
        agent.stdout.readline()  # it listens once it has told its socket
        subprocess.run(
            ["ssh-add", "-q", str(server.key)],
            env={"SSH_AUTH_SOCK": str(socket), "PATH": os.environ["PATH"]},
            check=True,
            stderr=subprocess.DEVNULL,
        )
        chosen = options(tmp_path, home, SSH_AUTH_SOCK=str(socket))
        path = await clone(tmp_path, server.url(served / "team/x.git"), chosen)
        assert (path / "f").read_text() == "1\n"
    finally:
        agent.terminate()
        agent.communicate()


async def test_submodules_with_relative_urls(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    lib = make_repository(served / "team/lib.git", {"l": "lib\n"})
    inner = make_repository(served / "team/x.git/in.git", {"i": "in\n"})
    modules = {"lib": ("../lib.git", lib), "in": ("./in.git", inner)}
    add_submodules(served / "team/x.git", modules)
    chosen = options(tmp_path, server.make_home(tmp_path / "home"))
    spec = RepoSpec(server.url(served / "team/x.git"), submodules=True)
    path = await clone(tmp_path, spec, chosen)
    assert (path / "lib/l").read_text() == "lib\n"
    assert (path / "in/i").read_text() == "in\n"


@needs_lfs
async def test_git_lfs_asks_the_host_over_ssh(
    tmp_path: Path, server: SshServer, served: Path
) -> None:
    with git_host(served, "never-asked-for") as lfs:
        lfs.add_lfs_file(served / "team/x.git", "a.bin", b"content\n")
        header = {"Authorization": "RemoteAuth t0ken"}
        lfs.object_header = header
        lfs.batch_header = header["Authorization"]
        server.serve_lfs(f"{lfs.url}/team/x.git/info/lfs", header)
        chosen = options(tmp_path, server.make_home(tmp_path / "home"))
        spec = RepoSpec(server.url(served / "team/x.git"), lfs=True)
        path = await clone(tmp_path, spec, chosen)
    assert (path / "a.bin").read_bytes() == b"content\n"
    assert any(c.startswith("git-lfs-authenticate") for c in server.commands)


async def test_without_the_program(tmp_path: Path, server: SshServer) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("git", "sh"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    git = Git(GitEnvironment(str(programs)), GitLimits(attempts=1))
    chosen = WorkspaceOptions(
        cache=tmp_path / "cache", state=tmp_path / "state", environment=git.environment
    )
    with pytest.raises(GitFailed) as caught:
        await clone(tmp_path, server.url(Path("/x.git")), chosen)
    assert "OpenSSH client" in caught.value.hint
