"""What containers' log files put around each line: Docker's JSON, and the format of the CRI. Pure.

Docker's driver json-file writes ``{"log": "text\\n", "stream": "stderr", "time": "…"}`` a line; a text without its line
feed goes on in the next line of the stream. The CRI (containerd, CRI-O, Podman's k8s-file) writes
``TIME stderr F text`` (kubernetes/design-proposals, node/kubelet-cri-logging.md), with P for a text that goes on.
"""

from __future__ import annotations

import json
import re
from typing import Literal, NamedTuple

Format = Literal["plain", "docker", "cri"]
_CRI = re.compile(rb"(\d{4}-\d\d-\d\dT\S+) (stdout|stderr) ([FP])(?::\S*)? ?")
_DOCKER = b'{"log":'
_WHOLE = {
    "cri": re.compile(
        rb"(?m)^\d{4}-\d\d-\d\dT[^ \n]+ (?:stdout|stderr) F(?::[^ \n]*)? ?([^\n]*)\n"
    ),
    "docker": re.compile(
        rb'(?m)^\{"log": ?"([^\n]*)\\n", ?"stream": ?"[^"\\\x00-\x1f]*", ?"time": ?"[^"\\\x00-\x1f]*"\}\n'
    ),
}
"""Lines that hold one whole text."""
_ESCAPES = (
    (rb"\t", b"\t"),
    (rb"\r", b"\r"),
    (rb"\u003c", b"<"),
    (rb"\u003e", b">"),
    (rb"\u0026", b"&"),
)
"""What Docker writes beside escaped quotes and backslashes, and what it stands for."""
_CONTROLS = bytes({*range(32)} - {*b"\n"})  # not in strings of JSON
_BACKSLASH = b"\0"  # stands for one while others are decoded; no string has it


class Entry(NamedTuple):
    """One line of a file: the text that the program wrote, to which stream, and whether it goes on in the next one."""

    text: bytes
    stream: str = ""
    goes_on: bool = False
    time: str = ""


def format_of(line: bytes) -> Format:
    """Return the format that a file with this line has."""
    if _CRI.match(line):
        return "cri"
    return "docker" if line.startswith(_DOCKER) and b'"stream":' in line else "plain"


def unwrap(line: bytes, form: Format) -> Entry:
    """Return what a line holds; a line of another format is a text by itself."""
    if form == "cri" and (found := _CRI.match(line)):
        return Entry(
            line[found.end() :], found[2].decode(), found[3] == b"P", found[1].decode()
        )
    if form == "docker" and line.startswith(b"{"):
        try:
            read = json.loads(line)
            text = read["log"].encode("utf-8", "surrogatepass")
        except (ValueError, KeyError, TypeError, AttributeError):
            return Entry(line)
        goes_on = not text.endswith(b"\n")
        stream, time = str(read.get("stream", "")), str(read.get("time", ""))
        return Entry(text.rstrip(b"\r\n"), stream, goes_on, time)
    return Entry(line)


def whole_texts(data: bytes, form: Format) -> bytes | None:
    """Return what complete lines hold, a line each; None if one of them is no whole text, or has to be decoded by itself."""
    found = _WHOLE[form].findall(data)
    if len(found) != data.count(b"\n"):
        return None
    texts = b"\n".join([*found, b""])
    return _decoded(texts) if form == "docker" else texts


def _decoded(texts: bytes) -> bytes | None:
    """Return strings of JSON, a line each, without their escapes; None if one is no string, or has others."""
    if len(texts.translate(None, _CONTROLS)) < len(texts):
        return None
    escaped = texts.replace(rb"\\", _BACKSLASH)
    texts = escaped.replace(rb"\"", b'"')
    if escaped.count(b'"') != len(escaped) - len(texts):  # one that ends the string
        return None
    for escape, char in _ESCAPES if b"\\" in texts else ():
        texts = texts.replace(escape, char)
    return None if b"\\" in texts else texts.replace(_BACKSLASH, b"\\")


def complete(data: bytes, form: Format) -> int:
    """Return how many bytes, which end with a line, are complete records: none that goes on is at their end."""
    end = len(data)
    while form != "plain" and end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if not unwrap(data[start : end - 1], form).goes_on:
            break
        end = start
    return end
