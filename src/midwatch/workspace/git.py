"""The only runner of git: a clean environment, bounds on time and output, typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from midwatch.lifecycle import Clock, SystemClock
from midwatch.workspace.environment import GitEnvironment, git_variables
from midwatch.workspace.errors import (
    GitFailed,
    GitMissing,
    GitTimedOut,
    NoSuchBranch,
    NotAuthorised,
    PushRejected,
    RepositoryCorrupted,
    RepositoryError,
    RepositoryNotFound,
    RepositoryUnreachable,
    WorkspaceDiskFull,
    WorkspaceNotWritable,
)
from midwatch.workspace.urls import Remote, conceal

# ------------------------------------------------------------ progress
# Git's progress lines, as values.

Phase = Literal["asking", "counting", "receiving", "resolving", "checkout", "done"]

_LINE = re.compile(
    r"^(?:remote: )?(?P<what>[A-Z][a-z]+ [a-z]+):\s+(?P<percent>\d{1,3})% "
    r"\((?P<done>\d+)/(?P<total>\d+)\)(?:, (?P<rest>[^\r\n]{0,60}))?"
)
_PHASES: dict[str, Phase] = {
    "Counting objects": "counting",
    "Compressing objects": "counting",
    "Receiving objects": "receiving",
    "Resolving deltas": "resolving",
    "Updating files": "checkout",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one repository is. `percent` is of this phase; `detail` is git's (size, speed)."""

    repository: str
    phase: Phase
    percent: int = 0
    detail: str = ""


OnProgress = Callable[[Progress], None]


def parse_progress(repository: str, line: str) -> Progress | None:
    """The progress that a line of git's stderr tells, if it is such a line."""
    match = _LINE.match(line)
    phase = _PHASES.get(match["what"]) if match else None
    if match is None or phase is None:
        return None
    detail = (match["rest"] or "").removesuffix("done.").strip(" ,")
    return Progress(repository, phase, min(100, int(match["percent"])), detail)


# ------------------------------------------------------------ faults
# What git says when it fails, as our own errors. The one place that reads git's words.

# The first pattern that is found decides. What git says of the cause comes before what follows
# from it ("could not read from remote repository" ends many different stories).
_PATTERNS: tuple[tuple[str, type[RepositoryError], str | None], ...] = (
    (r"No space left on device|Disk quota exceeded", WorkspaceDiskFull, None),
    (
        r"dubious ownership",
        NotAuthorised,
        "the repository's folder belongs to another user: change its owner",
    ),
    (
        r"\(non-fast-forward\)|\(fetch first\)|tip of your current branch is behind",
        PushRejected,
        "the branch has commits that the session does not have: push to another branch, "
        "or start a new session from that branch",
    ),
    (
        r"protected branch|GH006|not allowed to push|hook declined",
        PushRejected,
        "the server does not allow it: push to another branch and open a pull request",
    ),
    (
        r"\[remote rejected\].*(refusing to update checked out branch|branch is currently checked out)",
        PushRejected,
        "that branch is checked out there: push to another branch",
    ),
    (
        r"requested URL returned error: 403|Write access to repository not granted"
        r"|Permission to \S+ denied|insufficient permission|read.only",
        NotAuthorised,
        "the credentials are known, but may not do this: use a token with write access",
    ),
    (
        r"Authentication failed|could not read (Username|Password)|terminal prompts disabled"
        r"|requested URL returned error: 401|Invalid username or password",
        NotAuthorised,
        None,
    ),
    (
        r"Host key verification failed",
        NotAuthorised,
        "connect once with `ssh` to make the host's key known",
    ),
    (r"Permission denied \(|Too many authentication failures", NotAuthorised, None),
    (
        r"Permission denied",
        NotAuthorised,
        "the user who runs this may not read or write the files",
    ),
    (
        r"Operation too slow|Connection timed out|Operation timed out|timed out after"
        r"|Timeout was reached|SSL connection timeout",
        GitTimedOut,
        None,
    ),
    (
        r"Could not resolve (host|proxy)|Couldn't connect to server|Failed to connect"
        r"|Connection refused|Connection reset|Network is unreachable|No route to host"
        r"|Empty reply from server|early EOF|unexpected disconnect|hung up unexpectedly"
        r"|RPC failed|requested URL returned error: (429|5\d\d)|curl \d+|kex_exchange"
        r"|Recv failure|SSL_ERROR|Temporary failure in name resolution",
        RepositoryUnreachable,
        None,
    ),
    (
        r"SSL certificate problem|unable to get local issuer",
        NotAuthorised,
        "check the host's certificate",
    ),
    (
        r"[Rr]epository .*not found|requested URL returned error: 404|does not appear to be a git repo"
        r"|not a git repository|does not exist|not valid: is this a git|invalid gitfile format",
        RepositoryNotFound,
        None,
    ),
    (
        r"Remote branch .* not found|couldn't find remote ref|not our ref",
        NoSuchBranch,
        None,
    ),
    (
        r"corrupt|inflate: data stream error|bad object|unable to read (tree|sha1 file|[0-9a-f]{40})"
        r"|missing (blob|tree|commit)|loose object .* is|garbage at end|bad signature|invalid index-pack"
        r"|does not match index|pack has bad|file .*\.pack is far too short|packfile .* cannot be accessed"
        r"|index file .* is too small|bad config line|unresolved delta|did not send all necessary objects"
        r"|object .* (is not|cannot be) |broken delta|bad tree object|inconsistent",
        RepositoryCorrupted,
        None,
    ),
    (r"\[(remote )?rejected\]", PushRejected, None),
    (
        r"unable to access|Could not read from remote repository",
        RepositoryUnreachable,
        None,
    ),
)
_COMPILED = tuple(
    (re.compile(pattern), kind, hint) for pattern, kind, hint in _PATTERNS
)
_TELLING = re.compile(
    r"^(fatal|error|remote|ssh|ERROR|!)\b[:\t ]*|^\s*!\s*\[", re.MULTILINE
)
_NOISE = re.compile(
    r"%|^remote: (Enumerating|Counting|Compressing|Total)|^hint:|^Cloning into"
)


def classify(
    repository: str, said: str, code: int, branch: str | None = None
) -> RepositoryError:
    """The error that git's stderr (and a push's porcelain) tells; GitFailed if none fits.

    `said` must have its secrets removed already.
    """
    for pattern, kind, hint in _COMPILED:
        match = pattern.search(said)
        if match:
            cause = _cause(said, match.start())
            return kind(repository, cause, branch=branch, hint=hint)
    return GitFailed(repository, _cause(said, None) or f"exit {code}", branch=branch)


def _cause(said: str, at: int | None) -> str:
    """The line around `at`, else the last that looks like a reason; bounded, printable."""
    if at is not None:
        start = said.rfind("\n", 0, at) + 1
        end = said.find("\n", at)
        line = said[start : end if end >= 0 else None]
    else:
        lines = [x for x in said.splitlines() if x.strip() and not _NOISE.search(x)]
        telling = [x for x in lines if _TELLING.match(x)]
        line = (telling or lines or [""])[-1]
    line = re.sub(r"^(fatal|error|remote|ERROR): *", "", line.strip())
    return conceal(" ".join(line.replace("?", "\0").split())).replace("\ufffd", "?")


T = TypeVar("T")
_STDERR_KEPT = 32_000
_CHUNK = 65_536
_LINE_END = re.compile(r"[\r\n]")


@dataclass(frozen=True, slots=True)
class GitLimits:
    """Bounds of git: seconds of wall clock, bytes of output, and what is too slow.

    A transfer below `low_speed_bytes` a second for `low_speed_seconds` is given up. `attempts`
    counts tries of what failed by the network alone; waits double from `backoff` seconds.
    """

    ask_seconds: float = 30.0
    transfer_seconds: float = 900.0
    local_seconds: float = 300.0
    low_speed_bytes: int = 1000
    low_speed_seconds: float = 30.0
    output_bytes: int = 64_000_000
    attempts: int = 3
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class Output:
    """What a git process said. `cut` is true where stdout went on past the bound."""

    code: int
    out: bytes
    err: str
    cut: bool = False

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Command:
    """One call of git.

    `repository` and `branch` are for messages. `remote` is the one place it may talk to: it
    decides on protocols and credentials; without one, git talks to nobody. `stdin` is bytes, or a
    file. `ok` are the exit codes that are no failure.
    """

    args: Sequence[str]
    repository: str
    branch: str | None = None
    git_dir: Path | None = None
    work_tree: Path | None = None
    folder: Path | None = None
    remote: Remote | None = None
    protocols: str | None = None
    stdin: bytes | Path | None = None
    timeout: float | None = None
    max_output: int | None = None
    ok: frozenset[int] = frozenset({0})
    variables: Mapping[str, str] = field(default_factory=dict)
    on_progress: OnProgress | None = None


class Git:
    """Runs git. Raises GitMissing, GitTimedOut and what `faults.classify` knows."""

    def __init__(
        self,
        environment: GitEnvironment | None = None,
        limits: GitLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.environment = environment or GitEnvironment()
        self.limits = limits or GitLimits()
        self.clock = clock or SystemClock()
        self._program = shutil.which("git", path=self.environment.path)

    async def run(self, command: Command) -> Output:
        """Run it to its end, or kill it with all its children at a bound or a cancellation."""
        process, whole = await self._start(command), False
        seconds = command.timeout or self._seconds(command)
        try:
            async with asyncio.timeout(seconds):
                output = await _collect(process, command, self.limits.output_bytes)
            whole = True
        except TimeoutError:
            raise GitTimedOut(
                command.repository,
                f"no end within {seconds:g} s",
                branch=command.branch,
            ) from None
        finally:
            if not whole:
                _kill(process)
            await asyncio.shield(_end(process))
        return self._checked(command, output)

    async def retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation`, again after a network fault, as often as the limits say."""
        for attempt in range(1, self.limits.attempts):
            try:
                return await operation()
            except RepositoryUnreachable:
                await self.clock.sleep(self.limits.backoff * 2 ** (attempt - 1))
        return await operation()

    def _seconds(self, command: Command) -> float:
        limits = self.limits
        return limits.transfer_seconds if command.remote else limits.local_seconds

    async def _start(self, command: Command) -> asyncio.subprocess.Process:
        if self._program is None:
            raise GitMissing()
        arguments = [self._program, "--no-pager"]
        if command.git_dir is not None:
            arguments.append(f"--git-dir={command.git_dir}")
        if command.work_tree is not None:
            arguments.append(f"--work-tree={command.work_tree}")
        with contextlib.ExitStack() as files:
            stdin: int = asyncio.subprocess.DEVNULL
            if isinstance(command.stdin, bytes):
                stdin = asyncio.subprocess.PIPE
            elif command.stdin is not None:
                stdin = files.enter_context(command.stdin.open("rb")).fileno()
            return await asyncio.create_subprocess_exec(
                *arguments,
                *command.args,
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._variables(command),
                cwd=command.folder or command.work_tree or "/",
                start_new_session=True,  # its own group to kill, and no terminal to ask at
            )

    def _variables(self, command: Command) -> dict[str, str]:
        limits = self.limits
        protocols = command.protocols or protocols_of(command.remote)
        return {
            **git_variables(
                self.environment,
                command.remote,
                protocols,
                limits.low_speed_bytes,
                limits.low_speed_seconds,
            ),
            **command.variables,
        }

    def _checked(self, command: Command, output: Output) -> Output:
        said = self.environment.conceal(output.err)
        if output.code in command.ok or output.cut:
            return Output(output.code, output.out, said, output.cut)
        if command.args[0] == "push":
            said += "\n" + self.environment.conceal(output.text)
        raise classify(command.repository, said, output.code, command.branch)


def protocols_of(remote: Remote | None) -> str:
    """The value of GIT_ALLOW_PROTOCOL for a command that talks to `remote` alone."""
    if remote is None:
        return "none"
    return "http:https" if remote.scheme == "http" else remote.scheme


def disk_fault(error: OSError, repository: str) -> RepositoryError:
    """The typed error for what the disk refused: it is full, or not ours to write."""
    cause = f"{os.strerror(error.errno or 0)}: {error.filename or repository}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkspaceDiskFull(repository, cause)
    return WorkspaceNotWritable(repository, cause)


async def _collect(
    process: asyncio.subprocess.Process, command: Command, default_bound: int
) -> Output:
    assert process.stdout and process.stderr
    bound = default_bound if command.max_output is None else command.max_output
    feeding = asyncio.ensure_future(_feed(process, command.stdin))
    telling = asyncio.ensure_future(_listen(process.stderr, command))
    try:
        out, cut = await _read(process.stdout, bound)
        if cut:
            _kill(process)
        err = await telling
        await feeding
        return Output(await process.wait(), out, err, cut)
    finally:
        for task in (feeding, telling):
            task.cancel()
        await asyncio.gather(feeding, telling, return_exceptions=True)


async def _read(stream: asyncio.StreamReader, bound: int) -> tuple[bytes, bool]:
    parts, size = [], 0
    while chunk := await stream.read(_CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > bound:
            return b"".join(parts)[:bound], True
    return b"".join(parts), False


async def _listen(stream: asyncio.StreamReader, command: Command) -> str:
    """Read stderr to its end: report progress, keep the end of the rest."""
    kept, rest = "", ""
    while chunk := await stream.read(_CHUNK):
        *lines, rest = _LINE_END.split(rest + chunk.decode("utf-8", "replace"))
        rest = rest[-_CHUNK:]
        for line in lines:
            progress = parse_progress(command.repository, line)
            if progress is None:
                kept = (kept + line + "\n")[-_STDERR_KEPT:]
            elif command.on_progress is not None:
                command.on_progress(progress)
    return (kept + rest)[-_STDERR_KEPT:]


async def _feed(
    process: asyncio.subprocess.Process, stdin: bytes | Path | None
) -> None:
    if not isinstance(stdin, bytes) or process.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(stdin)
        await process.stdin.drain()
    process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    # The group outlives its leader while a helper (git-remote-https, ssh) still runs.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no open pipe behind."""
    # Reading to the end is what closes the pipes; only a child that left the group holds them.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.communicate(), 5)
