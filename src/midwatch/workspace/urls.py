"""Where a repository lives: URLs read strictly, refused before git ever sees them."""

from __future__ import annotations

import os.path
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from midwatch.workspace.errors import WorkspaceRefused

Scheme = Literal["https", "http", "ssh", "file"]
MAX_LENGTH = 2048
TOKEN_HINT = (
    "take the password out of the URL and give it as a token for the host, "
    "or use an SSH agent"
)

_HELPER = re.compile(r"^[A-Za-z0-9+.-]*::")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP = re.compile(r"^(?:(?P<user>[^@/]*)@)?(?P<host>\[[^\]/]+\]|[^:/@]+):(?P<path>.*)$")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_HOST = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]*(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?"
)
_USERINFO = re.compile(r"(//|^)[^/@\s]*@")
_SAFE_IN_PATH = "/:@!$&'()*+,;=~-._"


@dataclass(frozen=True, slots=True)
class Remote:
    """A place to clone from or push to. `url` holds no secret and may be shown.

    `host` includes the port and is empty for a local path; `path` has the components of the
    path, decoded.
    """

    url: str
    scheme: Scheme
    host: str
    path: tuple[str, ...]

    @property
    def transport_url(self) -> str:
        """What git is given: a local path as file://, which never takes git's shortcuts."""
        if self.scheme == "file" and self.url.startswith("/"):
            return "file://" + quote(self.url, safe=_SAFE_IN_PATH)
        return self.url


def parse_remote(text: str) -> Remote:
    """The remote that `text` names: https, http, ssh, `git@host:path`, file or a local path.

    Raises WorkspaceRefused for everything else; the message never repeats a password.
    """
    text = text.strip()
    _refuse_odd_text(text)
    if _HELPER.match(text):
        raise _refused(text, "remote helpers are not allowed", "use https or ssh")
    scheme = _SCHEME.match(text)
    if scheme:
        return _from_url(text, scheme.group(1).lower())
    scp = None if text.startswith(("/", ".")) else _SCP.match(text)
    return _from_scp(text, scp) if scp else _from_path(text)


def conceal(text: str) -> str:
    """`text` fit to be shown: no userinfo, no query, no control characters, not too long."""
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    text = _USERINFO.sub(r"\1***@", text)
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= 200 else text[:200] + "…"


def has_control_characters(text: str) -> bool:
    """Control and format characters (which can reorder what a person reads), line separators."""
    return any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text)


def _refused(text: str, why: str, hint: str | None = None) -> WorkspaceRefused:
    return WorkspaceRefused(f"repository {conceal(text)!r} refused: {why}", hint=hint)


def _refuse_odd_text(text: str) -> None:
    if not text:
        raise WorkspaceRefused("a repository has an empty URL", hint="name its URL")
    if len(text) > MAX_LENGTH:
        raise _refused(text, f"longer than {MAX_LENGTH} characters")
    if has_control_characters(text):
        raise _refused(text, "control characters in the URL")
    if text.startswith("-"):
        raise _refused(text, "an option cannot be a repository")


def _from_url(text: str, scheme: str) -> Remote:
    try:
        parts = urlsplit(text)
        parts.port  # reading it is what checks it
    except ValueError:
        raise _refused(text, "not a valid URL") from None
    if has_control_characters(unquote(parts.path, errors="replace")):
        raise _refused(text, "control characters in the URL")
    if ".." in unquote(parts.path).split("/"):
        raise _refused(text, "`..` in the path")
    if scheme in ("https", "http"):
        return _from_http(text, parts)
    if scheme == "ssh":
        return _from_ssh(text, parts)
    if scheme == "file":
        return _from_file(text, parts)
    raise _refused(text, f"{scheme}:// is not allowed", "use https or ssh")


def _from_http(text: str, parts: SplitResult) -> Remote:
    if "@" in parts.netloc:
        raise _refused(text, "credentials in the URL", TOKEN_HINT)
    if parts.query or parts.fragment:
        raise _refused(text, "a query or fragment in the URL", TOKEN_HINT)
    host = _host(text, parts.netloc)
    path = quote(unquote(parts.path), safe=_SAFE_IN_PATH)
    scheme: Scheme = "https" if parts.scheme.lower() == "https" else "http"
    return Remote(f"{scheme}://{host}{path}", scheme, host, _components(parts.path))


def _from_ssh(text: str, parts: SplitResult) -> Remote:
    user, _, place = parts.netloc.rpartition("@")
    if ":" in user:
        raise _refused(text, "credentials in the URL", TOKEN_HINT)
    host = _host(text, place)
    path = unquote(parts.path)
    _check_ssh(text, user, path.lstrip("/"))
    login = f"{user}@" if user else ""
    url = f"ssh://{login}{host}{quote(path, safe=_SAFE_IN_PATH)}"
    return Remote(url, "ssh", host, _components(path))


def _from_scp(text: str, match: re.Match[str]) -> Remote:
    user, place, path = match["user"] or "", match["host"], match["path"]
    if ":" in user:
        raise _refused(text, "credentials in the URL", TOKEN_HINT)
    host = _host(text, place)
    if ".." in path.split("/"):
        raise _refused(text, "`..` in the path")
    _check_ssh(text, user, path)
    login = f"{user}@" if user else ""
    return Remote(f"{login}{host}:{path}", "ssh", host, _components(path))


def _check_ssh(text: str, user: str, path: str) -> None:
    if user and not _USER.fullmatch(user):
        raise _refused(text, "not a valid user name")
    if not path or path.startswith("-"):
        raise _refused(text, "not a valid path")


def _from_file(text: str, parts: SplitResult) -> Remote:
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _refused(text, "a file:// URL needs an absolute path", "file:///path")
    path = unquote(parts.path)
    return Remote(
        "file://" + quote(path, safe=_SAFE_IN_PATH), "file", "", _components(path)
    )


def _from_path(text: str) -> Remote:
    path = os.path.abspath(text)
    return Remote(path, "file", "", _components(path))


def _host(text: str, place: str) -> str:
    try:
        host = place if place.isascii() else place.encode("idna").decode("ascii")
    except UnicodeError:
        raise _refused(text, "not a valid host name") from None
    if not _HOST.fullmatch(host):
        raise _refused(text, "not a valid host name")
    return host.lower()


def _components(path: str) -> tuple[str, ...]:
    return tuple(part for part in unquote(path).split("/") if part)


# ------------------------------------------------------------ names
# Names that are safe: branches by git's rules, folders by those of every file system.

MAX_FOLDER_BYTES = 100
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
# The device names of Windows: a clone called so cannot be copied there.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³"
}
_OTHER_RESERVED = {".git", ".claude", "git~1", ".mcp.json"}


def is_ref_name(name: str) -> bool:
    """Whether git takes `name` as the end of `refs/heads/…` (git check-ref-format)."""
    return not (
        not name
        or name in ("@", "HEAD")
        or name.startswith(("-", "/"))
        or name.endswith(("/", "."))
        or _BAD_IN_REF.search(name)
        or any(p.startswith(".") or p.endswith(".lock") for p in name.split("/"))
        or any(len(p.encode("utf-8", "replace")) > 200 for p in name.split("/"))
        or len(name) > 1000
        or has_control_characters(name)
    )


def check_ref_name(name: str, what: str = "branch") -> str:
    """`name`, or WorkspaceRefused if it is none that git would take."""
    if not is_ref_name(name):
        raise WorkspaceRefused(
            f"{what} {name[:200]!r} refused: not a valid name",
            hint="name it as git does, such as main or fix/login",
        )
    return name


def collision_key(name: str) -> str:
    """Equal for names that one of the usual file systems takes for the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check_folder_name(name: str) -> str:
    """`name`, or WorkspaceRefused if it cannot be the name of a clone's folder."""
    why = _folder_fault(name)
    if why:
        raise WorkspaceRefused(
            f"folder name {name[:200]!r} refused: {why}",
            hint="use letters, digits, dots and dashes",
        )
    return name


def derive_folder_name(components: Sequence[str]) -> str:
    """A folder name from the last components of a repository's path (one or two of them)."""
    text = unicodedata.normalize("NFC", "-".join(components))
    text = re.sub(r"\.git$", "", text)
    text = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
    text = _cut(text.strip(".-_ "), MAX_FOLDER_BYTES - 10).strip(".-_ ") or "repository"
    return f"{text}-repo" if _folder_fault(text) else text


def _folder_fault(name: str) -> str:
    if not name or not name.strip():
        return "it is empty"
    if name in (".", ".."):
        return "it leaves the workspace"
    if "/" in name or "\\" in name:
        return "it is a path"
    if has_control_characters(name):
        return "it has control characters"
    if name.startswith("-"):
        return "it looks like an option"
    if name.startswith(".midwatch") or name.casefold() in _OTHER_RESERVED:
        return "it is reserved"
    if name.split(".")[0].strip().casefold() in _DEVICES:
        return "it is reserved on Windows"
    if name != name.strip(" ") or name.endswith(".") or re.search(r'[<>:"|?*]', name):
        return "some file systems cannot hold it"
    if len(name.encode("utf-8")) > MAX_FOLDER_BYTES:
        return f"it is longer than {MAX_FOLDER_BYTES} bytes"
    return ""


def _cut(text: str, size: int) -> str:
    return text.encode("utf-8")[:size].decode("utf-8", "ignore")
