"""URLs, ref names and folder names: parsed strictly, and refused before git sees them."""

from __future__ import annotations

import os.path
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, quote, unquote, urlsplit

from midwatch.workspace.errors import WorkspaceRefused
from midwatch.workspace.forges import clone_argument, helper_hint, is_command, page_of

Scheme = Literal["https", "http", "ssh", "file"]
MAX_LENGTH = 2048
_LONGEST_SCANNED = 4096
TOKEN_HINT = (
    "take the password out of the URL and give it as a token for the host, "
    "or use an SSH agent"
)

_HELPER = re.compile(r"^[A-Za-z0-9+.-]*::")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
# Package managers write git+https://, git itself knew git+ssh://.
_GIT_AND = re.compile(r"^git\+(?=(?:https?|ssh|file)://)", re.IGNORECASE)
_SCP = re.compile(r"^(?:(?P<user>[^/]*)@)?(?P<host>\[[^\]/]+\]|[^:/@]+):(?P<path>.*)$")
# A user may be an email address, as with Google's source repositories.
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?")
# Text without a scheme that begins as a URL does: github.com/o/r, git@github.com/o/r.
_NO_SCHEME = re.compile(
    r"(?P<user>[A-Za-z0-9._+-]+@)?(?P<host>[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,})"
    r"/(?P<path>[^/]+/.+)"
)
_HOST = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]*(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?"
)
# The user and the password in an authority, up to its last @. A password may have ? and #.
_USERINFO = re.compile(r"(//|^)[^/\s]*@")
# A password may have a slash as well: what is before it is where a port would be, without being a number.
_PASSWORD = re.compile(
    r"(//)(?:[^/\s@:]*@)?[^/\s\[\]@:]*:(?!\d{0,5}(?:[/?#\s'\",;:).]|$))\S*@"
)
# Also in a URL without its scheme: me:secret@github.com/o/r.
_SCP_PASSWORD = re.compile(
    r"[^@/\s]*:(?:\S*@[^/@\s]*:|[^@/\s]*(?<!\.git)@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}/)"
)
# A scheme of the web with too few or too many slashes, and what is before the last @.
_SLASHES = re.compile(
    r"(?P<start>(?P<scheme>https?|ssh):(?!//(?:[^/]|$))/*)(?:\S*@)?", re.I
)
_SHORTEST_TOKEN = 16
_LONG_TOKEN = re.compile(r"(?=.*\d)[A-Za-z0-9_=-]{32,}")
_SAFE_IN_PATH = "/:@!$&'()*+,;=~-._"
_SECRET = "the URL has a password or a token"
_DEFAULT_PORT = {"https": ":443", "http": ":80"}
_QUERY_HINT = (
    "leave out all from the ? or the # on: a branch is given as URL@BRANCH, "
    "a token for its host in the settings"
)


@dataclass(frozen=True, slots=True)
class Remote:
    """A parsed URL to clone from or push to.

    Attributes:
        url: The URL in one spelling, without a secret.
        scheme: How git connects.
        host: Host and port; empty for a local path.
        path: The components of the path, decoded.
    """

    url: str
    scheme: Scheme
    host: str
    path: tuple[str, ...]

    @property
    def transport_url(self) -> str:
        """The URL for git: a local path is a file URL, for which git does not link objects."""
        if self.scheme == "file" and self.url.startswith("/"):
            return "file://" + quote(self.url, safe=_SAFE_IN_PATH)
        return self.url


def parse_remote(text: str) -> Remote:
    """Parse an https, http, ssh or file URL, `user@host:path`, or a local path.

    The command `git clone URL`, as forges show it, counts as its URL. A user name in an https or http URL is
    dropped: a token has its own (`Credential.username`).

    Raises:
        WorkspaceRefused: It is something else, such as a web page, or has a password, which the message does
            not repeat.
    """
    text = _GIT_AND.sub("", plain_url(text))
    _refuse_odd_text(text)
    if _HELPER.match(text):
        raise _refused(text, "remote helpers are not allowed", helper_hint(text))
    _refuse_slashes(text)
    scheme = _SCHEME.match(text)
    if scheme:
        return _from_url(text, scheme.group(1).lower())
    scp = None if text.startswith(("/", ".")) else _SCP.match(text)
    return _from_scp(text, scp) if scp else _from_path(text)


def plain_url(text: str) -> str:
    """Return a pasted text without spaces around it, and without the `git clone` before it.

    Raises WorkspaceRefused for another command.
    """
    text = text.strip()
    if not is_command(text):
        return text
    url = clone_argument(text)
    if url is None:
        raise _refused(text, "it is a command", "give the URL alone")
    return url


def split_branch(text: str) -> tuple[str, str | None]:
    """Return the URL or path and the branch in `URL@BRANCH`, `PATH@BRANCH`, `URL` or `PATH`.

    The @ of a user name begins no branch, nor does one at the start of a path's component (`/srv/@scope/app`) or in
    the name of a file that exists. Branches may have one (`dependabot/npm/@types/node`).

    Raises:
        WorkspaceRefused: The branch is empty, or the URL has a password.
    """
    text = plain_url(text)
    _refuse_odd_text(text)
    if _HELPER.match(text):
        return text, None
    _refuse_slashes(text)
    if _has_password(text):
        raise _refused(text, _SECRET, TOKEN_HINT)
    end = _end_of_url(text, *_path_start(text))
    if end == len(text):
        return text, None
    if end == len(text) - 1:
        raise _refused(text, "there is no branch after the @", "write URL@BRANCH")
    return text[:end], text[end + 1 :]


def _end_of_url(text: str, start: int, local: bool) -> int:
    """Return where the URL ends in `text`, whose path begins at `start`: at the @ of a branch, or at the end."""
    found = re.finditer(r"(?<=[^/])@", text)
    ends = [match.start() for match in found if match.start() > start]
    if local:
        existing = [n for n in (*ends, len(text)) if os.path.lexists(_local(text[:n]))]
        if existing:
            return existing[-1]
    for end in ends:
        if text[:end].endswith(".git"):
            return end
    return len(text) if text.endswith(".git") or not ends else ends[0]


def _path_start(text: str) -> tuple[int, bool]:
    """Return where the path begins, and whether it is one of this machine."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        scp = None if text.startswith(("/", ".")) else _SCP.match(text)
        no_scheme = _NO_SCHEME.fullmatch(text) if scp is None else None
        if no_scheme is not None and no_scheme["user"]:
            return no_scheme.start("path"), True
        return (scp.start("path"), False) if scp else (0, True)
    end = re.compile(r"[/?#]|$").search(text, scheme.end())
    assert end is not None
    return end.start(), scheme[1].lower() == "file"


def _has_password(text: str) -> bool:
    """Return whether there is a password before the host, in whatever spelling."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _SCP_PASSWORD.match(text) is not None
    return _PASSWORD.match(text, scheme.end(1) + 1) is not None


def _local(text: str) -> str:
    return unquote(text[7:]) if text.lower().startswith("file://") else text


def redact_url(text: str) -> str:
    """Return a text that may have a URL without userinfo, query and control characters, shortened."""
    text = text[:_LONGEST_SCANNED]  # a server may send a line of any length
    text = _SLASHES.sub(_without_user, text, count=1) if _SLASHES.match(text) else text
    text = _USERINFO.sub(r"\1***@", _PASSWORD.sub(r"\1***@", text))
    if _SCP_PASSWORD.match(text) and not _SCHEME.match(text):
        text = f"***@{text.rpartition('@')[2]}"
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= 200 else text[:200] + "…"


def _without_user(match: re.Match[str]) -> str:
    return match["start"] + ("***@" if match[0].endswith("@") else "")


def has_control_characters(text: str) -> bool:
    """Return whether there are control or format characters, which can reorder the text, or line separators."""
    return any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text)


def _refused(text: str, why: str, hint: str | None = None) -> WorkspaceRefused:
    from midwatch.redaction import Redactor  # its patterns take 50 ms to compile

    shown = redact_url(Redactor().text(text[:_LONGEST_SCANNED]))
    return WorkspaceRefused(f"repository {shown!r} refused: {why}", hint=hint)


def _refuse_slashes(text: str) -> None:
    found = _SLASHES.match(text)
    if found is not None:
        scheme = found["scheme"].lower()
        why = "the number of slashes is not two"
        raise _refused(text, why, f"write {scheme}://HOST/PATH")


def _refuse_odd_text(text: str) -> None:
    if not text:
        raise WorkspaceRefused(
            "a repository has an empty URL", hint="give the URL of the repository"
        )
    if len(text) > MAX_LENGTH:
        raise _refused(text, f"the URL is longer than {MAX_LENGTH} characters")
    if has_control_characters(text):
        raise _refused(text, "the URL has control characters")
    if text.startswith("-"):
        raise _refused(text, "the URL begins with a dash, as an option does")


def _from_url(text: str, scheme: str) -> Remote:
    if _has_password(text):
        raise _refused(text, _SECRET, TOKEN_HINT)
    try:
        parts = urlsplit(text)
        parts.port  # raises ValueError for an invalid port
    except ValueError:
        hint = "write ssh://HOST/PATH, or HOST:PATH without ssh://"
        raise _refused(
            text, "the URL is not valid", hint if scheme == "ssh" else None
        ) from None
    if has_control_characters(unquote(parts.path, errors="replace")):
        raise _refused(text, "the URL has control characters")
    if ".." in unquote(parts.path).split("/"):
        raise _refused(text, "the path has `..`")
    if scheme in ("https", "http"):
        return _from_http(text, parts)
    if scheme == "ssh":
        return _from_ssh(text, parts)
    if scheme == "file":
        return _from_file(text, parts)
    raise _refused(text, f"{scheme}:// is not allowed", "use an https or ssh URL")


def _from_http(text: str, parts: SplitResult) -> Remote:
    user, _, place = parts.netloc.rpartition("@")
    _refuse_secret(text, user)
    if "\\" in user:  # a browser would take what is before it for the host
        raise _refused(text, "the user name is not valid")
    scheme: Scheme = "https" if parts.scheme.lower() == "https" else "http"
    host = _host(text, place).removesuffix(_DEFAULT_PORT[scheme])
    components = _components(parts.path)
    page = page_of(scheme, host, components, parts.query)
    if page is not None:
        raise _refused(text, "this is a web page, not a URL to clone", page.hint)
    if parts.query or parts.fragment:
        raise _refused(text, "the URL has a query or a fragment", _QUERY_HINT)
    path = quote(unquote(parts.path), safe=_SAFE_IN_PATH).rstrip("/")
    return Remote(f"{scheme}://{host}{path}", scheme, host, components)


def _refuse_secret(text: str, user: str) -> None:
    """Raise WorkspaceRefused if what is before the @ has a password, or is a token."""
    user = unquote(user)
    if ":" in user or _LONG_TOKEN.fullmatch(user) or _looks_secret(user):
        raise _refused(text, _SECRET, TOKEN_HINT)


def _looks_secret(user: str) -> bool:
    if len(user) < _SHORTEST_TOKEN:
        return False
    from midwatch.redaction import Redactor  # its patterns take 50 ms to compile

    return Redactor().text(user) != user


def _from_ssh(text: str, parts: SplitResult) -> Remote:
    user, _, place = parts.netloc.rpartition("@")
    _refuse_secret(text, user)
    user = unquote(user)
    host = _host(text, place)
    path = unquote(parts.path)
    _check_ssh(text, user, path.lstrip("/"))
    login = f"{quote(user, safe='')}@" if user else ""
    url = f"ssh://{login}{host}{quote(path, safe=_SAFE_IN_PATH)}"
    return Remote(url, "ssh", host, _components(path))


def _from_scp(text: str, match: re.Match[str]) -> Remote:
    user, place, path = match["user"] or "", match["host"], match["path"]
    if _has_password(text):
        raise _refused(text, _SECRET, TOKEN_HINT)
    _refuse_secret(text, user)
    if place.lower() in ("file", "git"):
        raise _refused(text, "a slash is missing", f"write {place.lower()}://")
    host = _host(text, place)
    if ".." in path.split("/"):
        raise _refused(text, "the path has `..`")
    _check_ssh(text, user, path)
    login = f"{user}@" if user else ""
    return Remote(f"{login}{host}:{path}", "ssh", host, _components(path))


def _check_ssh(text: str, user: str, path: str) -> None:
    if user and not _USER.fullmatch(user):
        raise _refused(text, "the user name is not valid")
    if not path or path.startswith("-"):
        raise _refused(text, "the path is not valid")


def _from_file(text: str, parts: SplitResult) -> Remote:
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _refused(text, "a file URL needs an absolute path", "write file:///path")
    path = unquote(parts.path)
    return Remote(
        "file://" + quote(path, safe=_SAFE_IN_PATH), "file", "", _components(path)
    )


def _from_path(text: str) -> Remote:
    url = _NO_SCHEME.fullmatch(text)
    if url is not None and not os.path.lexists(text):
        user, host, path = url["user"] or "", url["host"], url["path"]
        _refuse_secret(text, user.rstrip("@"))
        better = f"{user}{host}:{path}" if user else f"https://{host}/{path}"
        hint = f"write {redact_url(better) if not user else better}; ./ begins a path"
        raise _refused(text, "neither a URL nor a path that exists", hint)
    path = os.path.abspath(text)
    return Remote(path, "file", "", _components(path))


def _host(text: str, place: str) -> str:
    host = unicodedata.normalize("NFC", place.lower()).removesuffix(":")
    if not host.isascii():
        host = _ascii_host(text, host)
    if not _HOST.fullmatch(host):
        raise _refused(text, "the host name is not valid")
    return host


def _ascii_host(text: str, host: str) -> str:
    try:
        encoded = host.encode("idna")
        same = encoded.decode("idna") == host
    except UnicodeError:
        raise _refused(text, "the host name is not valid") from None
    if not same:  # Python writes a sharp s as ss, which is another host for a browser
        raise _refused(text, "the host name is ambiguous", "write it as xn--…")
    return encoded.decode("ascii")


def _components(path: str) -> tuple[str, ...]:
    return tuple(part for part in unquote(path).split("/") if part)


# ------------------------------------------------------------ names

MAX_FOLDER_BYTES = 100
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
# The device names of Windows: a folder with such a name cannot be copied there.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³"
}
_OTHER_RESERVED = {".git", ".claude", "git~1", ".mcp.json"}


def is_ref_name(name: str) -> bool:
    """Return whether `refs/heads/NAME` is a valid ref (git-check-ref-format(1))."""
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
    """Return `name` if it is a valid name of a branch or tag. Raises WorkspaceRefused."""
    if not is_ref_name(name):
        raise WorkspaceRefused(
            f"{what} {name[:200]!r} refused: the name is not valid",
            hint="use a name that git accepts, such as main or fix/login",
        )
    return name


def collision_key(name: str) -> str:
    """Return a text that is equal for names that a common file system treats as the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check_folder_name(name: str) -> str:
    """Return `name` if it is a valid name for the folder of a clone. Raises WorkspaceRefused."""
    why = _why_not_a_folder(name)
    if why:
        raise WorkspaceRefused(
            f"folder name {name[:200]!r} refused: {why}",
            hint="use letters, digits, dots and dashes",
        )
    return name


def derive_folder_name(components: Sequence[str]) -> str:
    """Return a valid folder name made from the last components of a repository's path."""
    text = unicodedata.normalize("NFC", "-".join(components))
    text = re.sub(r"\.git$", "", text)
    text = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
    text = _cut(text.strip(".-_ "), MAX_FOLDER_BYTES - 10).strip(".-_ ") or "repository"
    return f"{text}-repo" if _why_not_a_folder(text) else text


def _why_not_a_folder(name: str) -> str:
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
        return "some file systems do not allow it"
    if len(name.encode("utf-8")) > MAX_FOLDER_BYTES:
        return f"it is longer than {MAX_FOLDER_BYTES} bytes"
    return ""


def _cut(text: str, size: int) -> str:
    return text.encode("utf-8")[:size].decode("utf-8", "ignore")
