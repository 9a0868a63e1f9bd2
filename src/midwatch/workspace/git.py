"""Run git: a clean environment, limits on time and output, typed errors.

No other module starts git, and no other reads its messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from midwatch.files import is_disk_full
from midwatch.lifecycle import Backoff, Clock, SystemClock, cancel
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
from midwatch.workspace.urls import Remote, redact_url

# ------------------------------------------------------------ progress

ProgressPhase = Literal[
    "asking", "counting", "receiving", "resolving", "checkout", "done"
]

_LINE = re.compile(
    r"^(?:remote: )?(?P<what>[A-Z][a-z]+ [a-z]+):\s+(?P<percent>\d{1,3})% "
    r"\((?P<done>\d+)/(?P<total>\d+)\)(?:, (?P<rest>[^\r\n]{0,60}))?"
)
_PHASES: dict[str, ProgressPhase] = {
    "Counting objects": "counting",
    "Compressing objects": "counting",
    "Receiving objects": "receiving",
    "Resolving deltas": "resolving",
    "Updating files": "checkout",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one repository.

    Attributes:
        repository: Its URL.
        phase: What git does.
        percent: The progress in this phase, from 0 to 100.
        detail: Size and speed, as git prints them.
    """

    repository: str
    phase: ProgressPhase
    percent: int = 0
    detail: str = ""


OnProgress = Callable[[Progress], None]


def parse_progress(repository: str, line: str) -> Progress | None:
    """Return the progress in a line of git's stderr, or None if it is another line."""
    match = _LINE.match(line)
    phase = _PHASES.get(match["what"]) if match else None
    if match is None or phase is None:
        return None
    detail = (match["rest"] or "").removesuffix("done.").strip(" ,")
    return Progress(repository, phase, min(100, int(match["percent"])), detail)


# ------------------------------------------------------------ errors

# The first pattern that matches counts. Causes come before their consequences: git prints "could not
# read from remote repository" after many different causes.
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
        "the credentials lack the permission: use a token with write access",
    ),
    (
        r"Authentication failed|could not read (Username|Password)|terminal prompts disabled|us to quit"
        r"|requested URL returned error: 401|Invalid username or password",
        NotAuthorised,
        None,
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        NotAuthorised,
        "the host's key is not the one in known_hosts: someone may listen in between; ask who runs the host, "
        "and remove the old key with `ssh-keygen -R` only if the new one is right",
    ),
    (
        r"Host key verification failed",
        NotAuthorised,
        "the host's key is not in known_hosts: connect once with `ssh`, or add a key that you have checked, "
        "such as one from `ssh-keyscan`",
    ),
    (
        r"Permission denied \(|Too many authentication failures",
        NotAuthorised,
        "the host accepts none of the SSH keys: start an SSH agent with the key, or set GIT_SSH_COMMAND",
    ),
    (
        r"cannot run ssh|ssh: (command )?not found",
        GitFailed,
        "install the OpenSSH client, or use an https URL",
    ),
    (
        r"Permission denied",
        NotAuthorised,
        "give the user who runs this permission to read and write the files",
    ),
    (
        r"Operation too slow|Connection timed out|Operation timed out|timed out after"
        r"|Timeout was reached|SSL connection timeout",
        GitTimedOut,
        None,
    ),
    (
        r"requested URL returned error: 3\d\d|unable to update url base from redirection",
        RepositoryNotFound,
        "the host redirects to another URL: use that one",
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
_REASON = re.compile(
    r"^(fatal|error|remote|ssh|ERROR|!)\b[:\t ]*|^\s*!\s*\[", re.MULTILINE
)
_NOISE = re.compile(
    r"%|^remote: (Enumerating|Counting|Compressing|Total)|^hint:|^Cloning into"
)


def map_git_error(
    repository: str, message: str, code: int, branch: str | None = None
) -> RepositoryError:
    """Return the error for a failed git.

    Args:
        repository: URL of the repository.
        message: What git printed on stderr, and of a push on stdout, without secrets.
        code: The exit code.
        branch: The branch, for the message.

    Returns:
        GitFailed if no pattern matches.
    """
    for pattern, kind, hint in _PATTERNS:
        match = re.search(pattern, message)
        if match:
            cause = _cause(message, match.start())
            return kind(repository, cause, branch=branch, hint=hint)
    return GitFailed(repository, _cause(message, None) or f"exit {code}", branch=branch)


def map_disk_error(error: OSError, repository: str) -> RepositoryError:
    """Return WorkspaceDiskFull or WorkspaceNotWritable for an error of the disk."""
    cause = f"{os.strerror(error.errno or 0)}: {error.filename or repository}"
    kind = WorkspaceDiskFull if is_disk_full(error) else WorkspaceNotWritable
    return kind(repository, cause)


def _cause(message: str, at: int | None) -> str:
    """Return the line around `at`, else the last line that looks like a reason; short and printable."""
    if at is not None:
        start = message.rfind("\n", 0, at) + 1
        end = message.find("\n", at)
        line = message[start : end if end >= 0 else None]
    else:
        lines = [x for x in message.splitlines() if x.strip() and not _NOISE.search(x)]
        reasons = [x for x in lines if _REASON.match(x)]
        line = (reasons or lines or [""])[-1]
    line = re.sub(r"^(fatal|error|remote|ERROR): *", "", line.strip())
    return redact_url(" ".join(line.replace("?", "\0").split())).replace("\ufffd", "?")


# ------------------------------------------------------------ running git

T = TypeVar("T")
_STDERR_KEPT = 32_000
_CHUNK = 65_536
_LINE_END = re.compile(r"[\r\n]")
_LONGEST_WAIT = 60.0  # seconds between two tries


@dataclass(frozen=True, slots=True)
class GitLimits:
    """Limits of git.

    Attributes:
        ask_seconds: Timeout of a query for the refs of a remote.
        transfer_seconds: Timeout of a command that talks to a remote.
        local_seconds: Timeout of a local command.
        low_speed_bytes: Bytes per second. A transfer that is slower for `low_speed_seconds` is ended.
        low_speed_seconds: See `low_speed_bytes`.
        output_bytes: The largest output; more is cut.
        attempts: Tries of a command that fails by the network.
        backoff: Seconds before the second try. Waits double, up to a minute.
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
class GitOutput:
    """The output of a git process; `cut` if stdout was longer than the limit."""

    code: int
    out: bytes
    err: str
    cut: bool = False

    @property
    def text(self) -> str:
        """Stdout as text."""
        return self.out.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class GitCommand:
    """A call of git.

    Attributes:
        args: The arguments, without those that the other fields stand for.
        repository: URL of the repository, for messages.
        branch: The branch, for messages.
        git_dir: The git directory.
        work_tree: The work tree.
        folder: The working directory; the work tree by default.
        remote: The only remote that git may talk to, which decides on protocols and credentials.
            Without one, git has no network.
        protocols: Replaces the protocols of `remote`, as in GIT_ALLOW_PROTOCOL.
        all_credentials: Whether git may also talk to other remotes, as for submodules, each with its own token.
        stdin: Bytes, or a file.
        timeout: Replaces the timeout of `GitLimits`, in seconds.
        max_output: Replaces `GitLimits.output_bytes`.
        ok: Exit codes that are not errors.
        variables: More environment variables.
        on_progress: Called with the progress.
    """

    args: Sequence[str]
    repository: str
    branch: str | None = None
    git_dir: Path | None = None
    work_tree: Path | None = None
    folder: Path | None = None
    remote: Remote | None = None
    protocols: str | None = None
    all_credentials: bool = False
    stdin: bytes | Path | None = None
    timeout: float | None = None
    max_output: int | None = None
    ok: frozenset[int] = frozenset({0})
    variables: Mapping[str, str] = field(default_factory=dict)
    on_progress: OnProgress | None = None


class Git:
    """Runs git.

    Args:
        environment: What git sees of the environment; by default nothing but PATH.
        limits: Limits on time, output and tries.
        clock: Replaces the system's clock in tests.
    """

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

    async def run(self, command: GitCommand) -> GitOutput:
        """Run git and return its output. A timeout or a cancellation kills it and its children.

        Raises:
            GitMissing: There is no git program.
            GitTimedOut: Git did not end in time.
            RepositoryError: Git failed; see `map_git_error`.
        """
        process, ended = await self._start(command), False
        seconds = command.timeout or self._seconds(command)
        try:
            async with asyncio.timeout(seconds):
                output = await _collect(process, command, self.limits.output_bytes)
            ended = True
        except TimeoutError:
            raise GitTimedOut(
                command.repository,
                f"git did not end within {seconds:g} s",
                branch=command.branch,
            ) from None
        finally:
            if not ended:
                _kill(process)
            await asyncio.shield(_end(process))
        return self._checked(command, output)

    async def retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `operation`, tried again after network errors as the limits allow.

        Raises:
            RepositoryUnreachable: The last try failed.
        """
        waits = Backoff(self.limits.backoff, _LONGEST_WAIT)
        for _ in range(1, self.limits.attempts):
            try:
                return await operation()
            except RepositoryUnreachable:
                await self.clock.sleep(waits.next())
        return await operation()

    def _seconds(self, command: GitCommand) -> float:
        limits = self.limits
        return limits.transfer_seconds if command.remote else limits.local_seconds

    async def _start(self, command: GitCommand) -> asyncio.subprocess.Process:
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
                start_new_session=True,  # a process group to kill, and no terminal for prompts
            )

    def _variables(self, command: GitCommand) -> dict[str, str]:
        limits = self.limits
        protocols = command.protocols or protocols_of(command.remote)
        return {
            **git_variables(
                self.environment,
                command.remote,
                protocols,
                limits.low_speed_bytes,
                limits.low_speed_seconds,
                all_credentials=command.all_credentials,
            ),
            **command.variables,
        }

    def _checked(self, command: GitCommand, output: GitOutput) -> GitOutput:
        message = self.environment.redact(output.err)
        if output.code in command.ok or output.cut:
            return GitOutput(output.code, output.out, message, output.cut)
        if command.args[0] == "push":
            message += "\n" + self.environment.redact(output.text)
        raise map_git_error(command.repository, message, output.code, command.branch)


def protocols_of(remote: Remote | None) -> str:
    """Return the value of GIT_ALLOW_PROTOCOL for a command that talks to `remote` only."""
    if remote is None:
        return "none"
    return "http:https" if remote.scheme == "http" else remote.scheme


async def _collect(
    process: asyncio.subprocess.Process, command: GitCommand, limit: int
) -> GitOutput:
    assert process.stdout and process.stderr
    limit = limit if command.max_output is None else command.max_output
    feeding = asyncio.ensure_future(_feed(process, command.stdin))
    messages = asyncio.ensure_future(_read_messages(process.stderr, command))
    try:
        out, cut = await _read(process.stdout, limit)
        if cut:
            _kill(process)
            # An unread pipe can pause, and `Process.wait` also waits for the end of the pipe.
            while await process.stdout.read(_CHUNK):
                pass
        err = await messages
        await feeding
        return GitOutput(await process.wait(), out, err, cut)
    finally:
        await cancel(feeding, messages)


async def _read(stream: asyncio.StreamReader, limit: int) -> tuple[bytes, bool]:
    parts, size = [], 0
    while chunk := await stream.read(_CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            return b"".join(parts)[:limit], True
    return b"".join(parts), False


async def _read_messages(stream: asyncio.StreamReader, command: GitCommand) -> str:
    """Read stderr to its end: report progress, return the last of the other lines."""
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
    """Wait for the end of a process and close its pipes."""
    # Reading to the end closes the pipes. Only a child that left the group can hold them open.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.communicate(), 5)
