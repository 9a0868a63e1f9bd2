"""A runbook: a file of Markdown whose front matter says for which tickets it is (pure)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from midwatch.config import explain
from midwatch.documents import DocumentError, line_of, read_yaml
from midwatch.errors import PermanentError
from midwatch.matchers import InvalidMatcher, Matcher, parse_matchers
from midwatch.model import Severity
from midwatch.setting_group import Group
from midwatch.text import clean, one_line

MAX_BYTES = 256_000
"""Bytes of one runbook; a larger file is not read."""
_MAX_FRONT_MATTER = 16_000  # bytes
_LONGEST_TITLE = 120
_PARTS = re.compile(r"[^.\[\]]+")
"""The parts of the path of a field, such as `match.labels[0]`."""

Redact = Callable[[str], str]


class RunbookError(PermanentError):
    """A file cannot be used as a runbook."""


class NoFrontMatter(RunbookError):
    """A file has no front matter, as a README: it is not meant as a runbook."""


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]],
    BeforeValidator(_listed),
    Field(max_length=100),
]


class Match(Group):
    """The field `match` of the front matter. All conditions must hold; of the values of one, any."""

    kinds: Texts = Field(default_factory=list, description="Kinds of subjects.")
    subjects: Texts = Field(
        default_factory=list, description="Names of subjects, as shell patterns."
    )
    invariants: Texts = Field(
        default_factory=list, description="Ids of invariants, as shell patterns."
    )
    severity: Texts = Field(
        default_factory=list, description="critical, warning or info."
    )
    labels: Annotated[list[str], BeforeValidator(_listed)] = Field(
        default_factory=list,
        max_length=100,
        description="Matchers of labels as Alertmanager has them.",
    )

    @field_validator("severity")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for one in value:
            if one.upper() not in Severity.__members__:
                raise ValueError(f"{one!r:.40} is not critical, warning or info")
        return [one.lower() for one in value]

    @field_validator("labels")
    @classmethod
    def _matchers(cls, value: list[str]) -> list[str]:
        for one in value:
            try:
                parse_matchers(one)
            except InvalidMatcher as error:
                raise ValueError(error.message) from None
        return value


class _FrontMatter(Group):
    """What Midwatch reads of the front matter; other programs may have fields of their own there."""

    model_config = {**Group.model_config, "extra": "ignore"}

    title: str | None = Field(None, max_length=1000, description="Its title.")
    match: Match = Field(description="For which tickets it is.")


@dataclass(frozen=True, slots=True)
class Runbook:
    """A runbook.

    Attributes:
        source: The folder or the repository that it is from, or the host of a page.
        path: Its path in the source, or the URL of a page.
        title: Its title, on one line.
        text: Its Markdown without the front matter, redacted and harmless.
        match: For which tickets it is; None for a page that an alert names.
        labels: The matchers of `match`.
        version: The commit that it is from; empty for a file.
    """

    source: str
    path: str
    title: str
    text: str
    match: Match | None = None
    labels: tuple[Matcher, ...] = ()
    version: str = ""

    @property
    def place(self) -> str:
        """Where it is, for a person."""
        if self.match is None:
            return self.path
        at = f" at {self.version[:10]}" if self.version else ""
        return f"{self.path} in {self.source}{at}"


def parse_runbook(
    data: bytes, source: str, path: str, redact: Redact, version: str = ""
) -> Runbook:
    """Return the runbook in a file.

    Args:
        data: The whole file, at most `MAX_BYTES` of it and one more.
        source: The folder or repository that it is from.
        path: Its path there.
        redact: Removes secrets from a whole text.
        version: The commit that it is from.

    Raises:
        NoFrontMatter: It does not begin with a line `---`.
        RunbookError: It is too large, not text, or its front matter is wrong; the error says how in one line.
    """
    head, body = _parts(decode(data))
    matter = _front_matter(head)
    text = redact(clean(body, longest=None)).strip("\n")
    if not text.strip():
        raise RunbookError("has no text below its front matter")
    title = matter.title or heading_of(text) or PurePosixPath(path).stem
    return Runbook(
        source,
        path,
        one_line(redact(clean(title, longest=None)), _LONGEST_TITLE),
        text,
        matter.match,
        tuple(m for one in matter.match.labels for m in parse_matchers(one)),
        version,
    )


def parse_page(text: str, host: str, url: str, redact: Redact) -> Runbook:
    """Return the runbook in the Markdown of a page that an alert names; a front matter is left out."""
    try:
        _, text = _parts(text)
    except RunbookError:
        pass
    text = redact(clean(text, longest=None)).strip("\n")
    if not text.strip():
        raise RunbookError("has no text")
    title = heading_of(text) or PurePosixPath(url.split("?")[0]).name or host
    return Runbook(host, url, one_line(title, _LONGEST_TITLE), text)


def decode(data: bytes) -> str:
    """Return the text of a file. Raises RunbookError for one that is too large, or is not UTF-8 text."""
    if len(data) > MAX_BYTES:
        raise RunbookError(f"is larger than {MAX_BYTES:,} bytes")
    if b"\0" in data:
        raise RunbookError("is not text: it has a NUL byte")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise RunbookError(f"is not UTF-8 text (byte {error.start})") from None


def heading_of(text: str) -> str:
    """Return the text of the first heading with "#" of a Markdown text, or ""."""
    for line in text.split("\n", 200)[:200]:
        if line.startswith("#") and (heading := line.strip("# \t")):
            return heading
    return ""


def _parts(text: str) -> tuple[str, str]:
    """Return front matter and body. Raises NoFrontMatter, and RunbookError for one that does not end."""
    first, _, rest = text.partition("\n")
    if first.rstrip() != "---":
        raise NoFrontMatter("has no front matter: its first line is not ---")
    at = 0
    while at <= _MAX_FRONT_MATTER and at < len(rest):
        end = rest.find("\n", at)
        line = rest[at:] if end < 0 else rest[at:end]
        if line.rstrip() in ("---", "..."):
            return rest[:at], "" if end < 0 else rest[end + 1 :]
        if end < 0:
            break
        at = end + 1
    raise RunbookError(
        f"its front matter has no end: no line --- within {_MAX_FRONT_MATTER:,} characters"
    )


def _front_matter(head: str) -> _FrontMatter:
    head = f"\n{head}"  # lines count from that of the first ---
    try:
        found = read_yaml(head.encode())
    except DocumentError as error:
        raise RunbookError(f"its front matter is not YAML: {error.message}") from None
    if not isinstance(found, dict) or "match" not in found:
        raise RunbookError("its front matter has no field `match`")
    try:
        matter = _FrontMatter.model_validate(found)
    except ValidationError as error:
        problem = explain(error, _FrontMatter, what="field")
        line = line_of(head, _PARTS.findall(problem.path or ""))
        raise RunbookError(
            f"its front matter is wrong: line {line}: {problem.one_line()}"
        ) from None
    if not any(value for _, value in matter.match):
        raise RunbookError("its `match` has no condition")
    return matter
