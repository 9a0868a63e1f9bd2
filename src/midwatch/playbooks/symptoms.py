"""What a line of a log, a report or a page says is wrong (pure).

A line is read for what it names: a full disk, a login that is refused, a port that is taken. Such a symptom is a cause
or a consequence; a cause counts more, and a line about the component in question more than another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from midwatch.diagnosis_schema import Action, Citation
from midwatch.playbooks.base import action, bounded

CAUSE, CONSEQUENCE, COMPLAINT = range(3)


@dataclass(frozen=True, slots=True)
class Symptom:
    """What lines that match `pattern` say. `check` and `commands`, which only read, are what to look at first."""

    name: str
    weight: int
    pattern: re.Pattern[str]
    check: str
    commands: tuple[str, ...] = ()

    def advice(self) -> Action:
        return action(self.check, *self.commands)


def _symptom(
    name: str, pattern: str, check: str, *commands: str, weight: int = CAUSE
) -> Symptom:
    return Symptom(name, weight, re.compile(pattern, re.IGNORECASE), check, commands)


SYMPTOMS = (
    _symptom(
        "no space is left on a file system",
        r"no space left|\bENOSPC\b|disk (?:is )?full|not enough (?:free )?(?:disk )?space|out of (?:disk )?space"
        r"|disk quota exceeded|\bEDQUOT\b|\binsufficient (?:disk )?space",
        "See which file system is full, and what fills it",
        "df -h",
        "df -i",
    ),
    _symptom(
        "a file system is read-only",
        r"read-only file ?system|\bEROFS\b",
        "See why the file system was made read-only: the kernel does so after an error of the disk",
        "journalctl -k --since '-2h'",
        "findmnt -o TARGET,SOURCE,OPTIONS",
    ),
    _symptom(
        "memory ran out",
        r"out of memory|oom.?kill|\bOOM\b|cannot allocate memory|\bENOMEM\b|OutOfMemoryError|std::bad_alloc"
        r"|MemoryError|memory (?:limit )?exhausted|Result=oom-kill",
        "See who uses the memory, and the limit that was reached",
        "journalctl -k --since '-2h' | grep -iE 'out of memory|oom'",
        "ps -eo pid,rss,user,comm --sort=-rss | head -15",
    ),
    _symptom(
        "a limit of open files or processes is reached",
        r"too many open files|\bE[MN]FILE\b|resource temporarily unavailable.*fork|cannot fork"
        r"|unable to create (?:new )?(?:native )?thread|pthread_create failed",
        "See the limits of the process, and what it holds open",
        "ulimit -a",
    ),
    _symptom(
        "a disk fails",
        r"input/output error|\bEIO\b|I/O error|bad (?:sector|block)|medium error|checksum (?:error|mismatch)"
        r"|corrupt(?:ed|ion)\b",
        "See what the kernel says about the disk, before anything writes to it",
        "journalctl -k --since '-2h'",
    ),
    _symptom(
        "the address or port is taken by another process",
        r"address already in use|\bEADDRINUSE\b|port (?:\d+ )?is already (?:in use|allocated)",
        "See which process holds the port",
        "ss -ltnp",
    ),
    _symptom(
        "a configuration is not valid",
        r"syntax error|invalid (?:configuration|config|option|value|directive|argument for)|unknown (?:directive|option"
        r"|configuration|parameter)|unrecognized (?:option|configuration|argument)|configuration (?:file )?.{0,80}(?:test"
        r" failed|error)|\[emerg\]|missing required|failed to parse|parse error|cannot parse|parsing .{0,60}fail"
        r"|could not parse|YAMLException|yaml: |json: cannot",
        "See what was changed in the configuration shortly before",
    ),
    _symptom(
        "a certificate is not accepted",
        r"certificate (?:has )?expired|certificate verify failed|x509: |certificate is not (?:yet )?valid"
        r"|unable to get local issuer|self.signed certificate|hostname mismatch|tls: bad certificate"
        r"|unknown (?:ca|certificate authority)",
        "See the end, the names and the issuer of the certificate that is shown",
    ),
    _symptom(
        "a login is refused",
        r"authentication fail|password authentication|invalid (?:credentials|password|token|api.?key)|login (?:failed"
        r"|incorrect|refused)|\bunauthori[sz]ed\b|\b401\b|access denied for user|token (?:has |is )?(?:expired|invalid|revoked)"
        r"|expired token|ExpiredToken|InvalidClientTokenId|NOAUTH|WRONGPASS|password (?:has )?expired"
        r"|(?:role|user|account) .{0,60}(?:is locked|is not permitted to log in|does not exist)",
        "See whether the credentials expired or were changed, and who changed them",
    ),
    _symptom(
        "a permission is missing",
        r"permission denied|\bEACCES\b|\bEPERM\b|operation not permitted|access denied|AccessDenied|\bforbidden\b|\b403\b"
        r"|must be owner of",
        "See the owner and mode of what the line names, and the user of the process",
    ),
    _symptom(
        "a host name has no address",
        r"could not resolve|name or service not known|no such host|getaddrinfo|temporary failure in name resolution"
        r"|NXDOMAIN|ENOTFOUND|unknown host|nodename nor servname|host not found",
        "See whether the name server answers, and whether the name is right",
        "resolvectl status",
    ),
    _symptom(
        "a file or program is missing",
        r"no such file or directory|\bENOENT\b|command not found|module not found|ModuleNotFoundError"
        r"|ClassNotFoundException|cannot open shared object|executable file not found|file not found|status=203/EXEC"
        r"|does not exist\b",
        "See whether the file that the line names was moved, removed or never there",
    ),
    _symptom(
        "a lock is held, or another instance runs",
        r"already running|lock (?:file )?.{0,60}(?:exists|held)|could not (?:get|acquire|obtain) .{0,30}lock|deadlock"
        r"|unable to lock|is locked by|lock wait timeout|stale (?:pid|lock)",
        "See who holds the lock, and since when",
    ),
    _symptom(
        "the program itself crashed",
        r"segmentation fault|segfault|core.?dumped|\bSIG(?:SEGV|ABRT|BUS|ILL|FPE)\b|signal (?:11|6|7|4|8)\b|panic:"
        r"|fatal error: |assertion .{0,80}failed|stack overflow|Unhandled exception|uncaught exception"
        r"|Result=core-dump",
        "See the trace of the crash, and what was deployed shortly before",
        "coredumpctl list --no-pager",
    ),
    _symptom(
        "all connections of a pool or server are taken",
        r"too many (?:clients|connections)|connection pool .{0,40}(?:exhausted|timeout|full)|remaining connection slots"
        r"|QueuePool limit|max(?:imum)?.?(?:clients|connections) reached|pool is (?:full|exhausted)",
        "See who holds the connections of the server that the line names",
    ),
    _symptom(
        "a limit of requests is reached",
        r"too many requests|rate.?limit|\b429\b|throttl|quota (?:was )?exceeded|ResourceExhausted|limiting requests",
        "See which client sends more than before, and the limit",
    ),
    _symptom(
        "a peer refuses the connection",
        r"connection (?:was )?refused|\bECONNREFUSED\b|no live upstreams|host unreachable|no route to host"
        r"|network is unreachable|\bEHOSTUNREACH\b|could not connect to|failed to connect|cannot connect to",
        "See whether the peer that the line names runs and listens",
        "ss -ltnp",
        weight=CONSEQUENCE,
    ),
    _symptom(
        "a connection broke",
        r"connection reset|broken pipe|\bECONNRESET\b|\bEPIPE\b|connection (?:was )?(?:closed|aborted|lost|terminated)"
        r"|prematurely closed|unexpected EOF|server closed the connection",
        "See whether the peer that the line names ended at that time",
        weight=CONSEQUENCE,
    ),
    _symptom(
        "a peer does not answer in time",
        r"timed? ?out|\btimeout\b|\bETIMEDOUT\b|deadline exceeded|context canceled|took too long",
        "See what the peer that the line names does in that time",
        weight=CONSEQUENCE,
    ),
    _symptom(
        "an error",
        r"\b(?:errors?|fatal|critical|crit|emerg|alert|fail(?:ed|ure|s)?|exception|traceback|cannot|could not|unable to|killed"
        r"|aborted|refused|denied|rejected|invalid|missing|unhealthy|down)\b",
        "Read what the line names",
        weight=COMPLAINT,
    ),
)
# A line that says that there is none.
_FINE = re.compile(
    r"\b(?:no|0|zero|without|never|not any) (?:\w+ )?(?:errors?|failures?|failed|warnings?|timeouts?)\b|\b(?:errors?|failed"
    r"|failures?|timeouts?)\"?\s*[:=]\s*(?:0\b|none\b|null\b|false\b|\"\"|\[\])|\b0 (?:\w+ )?fail|\brecovered\b"
    r"|\bretry succeeded\b",
    re.IGNORECASE,
)
# Settings and command lines name timeouts and limits without complaint.
_SETTING = re.compile(
    r"^\W*[\w.-]*(?:timeout|limit|retries)[\w.-]*\W*[:=]", re.IGNORECASE
)
_QUOTED = re.compile(r'"[^"]*"')
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class Told:
    """A line that says what is wrong. `about` is true where it names what it was asked for."""

    symptom: Symptom
    citation: Citation
    about: bool
    place: int

    @property
    def quote(self) -> str:
        return self.citation.quote

    @property
    def text(self) -> str:
        """The symptom with the words of the line."""
        said = bounded(self.quote.removeprefix("| "), 160)
        return f"{self.symptom.name}: “{said}”"


def symptom_of(text: str) -> Symptom | None:
    """Return what a line says is wrong, or None.

    What a program itself says counts before what it quotes, as a request or a file name: clients choose these.
    """
    line = text[:_LONGEST]
    if _FINE.search(line) or _SETTING.search(line):
        return None
    for part in (_QUOTED.sub('""', line), line):
        for one in SYMPTOMS:
            if one.pattern.search(part):
                return one
    return None


def ranked(lines: Iterable[tuple[str, str]], about: Sequence[str] = ()) -> list[Told]:
    """Return what the lines say is wrong, one for each symptom: causes before consequences, the latest line of each.

    Args:
        lines: Number of the evidence and text, the latest last.
        about: Names; a line with one of them counts more than others of its weight.
    """
    wanted = [name.casefold() for name in about if len(name) > 2]
    best: dict[str, Told] = {}
    for place, (evidence_id, text) in enumerate(lines):
        symptom = symptom_of(text)
        if symptom is None:
            continue
        folded = text.casefold()
        told = Told(
            symptom,
            Citation(evidence_id=evidence_id, quote=bounded(text.strip())),
            any(name in folded for name in wanted),
            place,
        )
        known = best.get(symptom.name)
        if known is None or told.about >= known.about:
            best[symptom.name] = told
    return sorted(
        best.values(), key=lambda one: (one.symptom.weight, not one.about, -one.place)
    )


def ties(told: Sequence[Told]) -> list[Told]:
    """Return the first of what is ranked, and those that count as much: nothing tells which of them came first."""
    if not told:
        return []
    first = told[0]
    alike = (first.symptom.weight, first.about)
    return [one for one in told if (one.symptom.weight, one.about) == alike][:3]
