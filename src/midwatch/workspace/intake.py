"""Taking an agent's commits into a git directory of ours, checked by content.

`git fetch` from the clone is no way: it starts upload-pack there, with the clone's own
configuration. Instead, copies of the object files are offered to a `pack-objects` that runs in our
git directory, and `index-pack` computes every object's id anew, so a false index cannot pass off one content
as another.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

from midwatch.workspace.errors import GitFailed, RepositoryError
from midwatch.workspace.git import Command, Git
from midwatch.workspace.hostile import NotPlain, copy_new_objects
from midwatch.workspace.record import ClonedRepo
from midwatch.workspace.refs import read_refs

_MOST_REFS = 5000


async def take_commit(git: Git, repo: ClonedRepo, commit: str) -> None:
    """Bring `commit`, and all that it needs, into the trusted git directory.

    Raises NotPlain where that cannot be done. Afterwards the objects are all there and as
    their ids say.
    """
    if await _is_complete(git, repo, commit):
        return
    with tempfile.TemporaryDirectory(dir=repo.git_dir, prefix="quarantine-") as name:
        quarantine = Path(name)
        (quarantine / "objects").mkdir()
        objects = quarantine / "objects"
        await asyncio.to_thread(copy_new_objects, repo.path, repo.git_dir, objects)
        try:
            pack = await _packed(git, repo, commit, quarantine)
            await git.run(_command(repo, ["index-pack", "--stdin"], stdin=pack))
        except RepositoryError as error:
            raise NotPlain(f"its commits cannot be read: {error.cause}") from None
    if not await _is_complete(git, repo, commit):
        raise NotPlain("objects of its commits are missing or false")


async def _packed(git: Git, repo: ClonedRepo, commit: str, quarantine: Path) -> Path:
    """A pack of what the commit has beyond all that we have."""
    known = sorted({oid for oid in read_refs(repo.git_dir).values()})[:_MOST_REFS]
    known += [repo.base] if repo.base else []
    revisions = "".join([f"{commit}\n"] + [f"^{oid}\n" for oid in known])
    command = _command(
        repo,
        ["pack-objects", "--revs", "--quiet", str(quarantine / "taken")],
        stdin=revisions.encode(),
        variables={"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(quarantine / "objects")},
    )
    names = (await git.run(command)).text.split()
    if len(names) != 1:
        raise GitFailed(repo.url, "nothing to take")
    return quarantine / f"taken-{names[0]}.pack"


async def _is_complete(git: Git, repo: ClonedRepo, commit: str) -> bool:
    args = ["rev-list", "--objects", "--quiet", commit]
    if repo.blobless:
        args.insert(1, "--exclude-promisor-objects")
    if repo.base is not None:
        args += ["--not", repo.base]
    try:
        await git.run(_command(repo, args))
    except RepositoryError:
        return False
    return True


def _command(
    repo: ClonedRepo,
    args: list[str],
    *,
    stdin: bytes | Path | None = None,
    variables: dict[str, str] | None = None,
) -> Command:
    return Command(
        args,
        repository=repo.url,
        git_dir=repo.git_dir,
        stdin=stdin,
        variables=variables or {},
    )


def clear_quarantine(git_dir: Path) -> None:
    """Remove what an inspection that was killed left behind."""
    for left in git_dir.glob("quarantine-*"):
        shutil.rmtree(left, ignore_errors=True)
