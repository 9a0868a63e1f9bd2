"""Names that are safe: branches by git's rules, folders by those of every file system."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from midwatch.workspace.errors import WorkspaceRefused
from midwatch.workspace.urls import has_control_characters

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
