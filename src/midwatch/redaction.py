"""Redaction: known secret values and known shapes of secrets are hidden, in whole strings.

Redact before shortening: half a secret has no shape. Every pattern here takes linear time on any
input: it starts at a fixed word, its repetitions are possessive or bounded, and no two matches scan
the same characters. A secret becomes ``[redacted:<label>]``; redacting twice changes nothing.
`Sanitizer` applies all of this to observations.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from html import escape
from typing import Any
from urllib.parse import quote, quote_plus

from midwatch.model import Observation, Violation
from midwatch.text import clean, one_line

SHORTEST_KNOWN = 6
"""Known values of fewer characters are ignored: they occur in ordinary text."""
DEEPEST = 60
"""Levels of nesting that `Redactor.value` follows; deeper values are hidden."""
_PASSES = 6  # a hidden value can uncover the one beside it; two passes are usual


@dataclass(frozen=True)
class _Shape:
    """A secret's shape. A text that has it contains one of `hints` in lower case.

    To compile all of them takes as long as many a command; most never meet a text with a hint.
    """

    hints: tuple[str, ...]
    source: str
    replace: Callable[[re.Match[str]], str]
    flags: re.RegexFlag = re.NOFLAG

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.source, self.flags)


def _marker(label: str) -> str:
    return f"[redacted:{label}]"


def _possessive(body: str, least: int = 0) -> str:
    """Return the pattern of `least` or more times `body`, without backtracking.

    Python before 3.11.5 goes on from where the last, failed attempt at `body` ended
    (https://github.com/python/cpython/issues/106052). The last branch never matches, but
    puts the position back.
    """
    return rf"(?:{body}|(?!)){{{least},}}+"


# ------------------------------------------------------------------ tokens with a prefix of their own

_TOKENS: tuple[tuple[str, str, str], ...] = (  # label, hint, pattern
    ("anthropic-key", "sk-ant-", r"sk-ant-[\w-]{8,}+"),
    # 16 characters without a dash, and a digit, distinguish a key from a name with dashes.
    (
        "api-key",
        "sk-",
        r"sk-(?=[\w-]{0,200}[0-9])(?:[A-Za-z0-9]{1,12}-){0,3}[A-Za-z0-9_]{16}[\w-]*+",
    ),
    ("aws-key-id", "akia", r"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("aws-key-id", "asia", r"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{20,}+"),
    ("github-token", "github_pat_", r"github_pat_[A-Za-z0-9_]{20,}+"),
    (
        "gitlab-token",
        "glpat- glptt- gldt- glrt- glcbt- glsoat- glft- glagent-",
        r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|agent)-[\w.-]{16,}+",
    ),
    ("slack-token", "xox", r"xox[a-z](?:\.[a-z]{4})?-[A-Za-z0-9-]{10,}+"),
    ("slack-token", "xapp-", r"xapp-[0-9]-[A-Za-z0-9-]{10,}+"),
    (
        "slack-webhook",
        "hooks.slack.com",
        r"hooks\.slack\.com/(?:services|workflows)/[\w/-]{8,}+",
    ),
    ("google-key", "aiza", r"AIza[\w-]{35,}+"),
    ("google-token", "ya29.", r"ya29\.[\w-]{20,}+"),
    ("stripe-key", "k_live_", r"[sr]k_live_[A-Za-z0-9]{10,}+"),
    ("stripe-key", "k_test_", r"[sr]k_test_[A-Za-z0-9]{10,}+"),
    ("stripe-key", "whsec_", r"whsec_[A-Za-z0-9+/]{16,}+"),
    ("npm-token", "npm_", r"npm_[A-Za-z0-9]{30,}+"),
    ("pypi-token", "pypi-", r"pypi-AgE[\w-]{20,}+"),
    ("vault-token", "hvs. hvb. hvr.", r"hv[sbr]\.[\w-]{20,}+"),
    ("sendgrid-key", "sg.", r"SG\.[\w-]{16,64}\.[\w-]{16,}+"),
    ("huggingface-token", "hf_", r"hf_[A-Za-z0-9]{30,}+"),
    ("docker-token", "dckr_", r"dckr_[ps]at_[\w-]{20,}+"),
    ("digitalocean-token", "_v1_", r"do[opr]_v1_[a-f0-9]{40,}+"),
    ("jwt", "eyj", r"eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+){0,3}"),
)
_LABELS = {label for label, _, _ in _TOKENS} | {
    "authorization",
    "cookie",
    "password",
    "private-key",
    "secret",
    "token",
    "url-password",
}
# Only the labels of this module count as hidden; similar text does not.
_MARKER = rf"\[redacted:(?:{'|'.join(sorted(_LABELS))})\]"
# One start per run of such characters, so that a long run is scanned once. A JSON escape or
# a percent code right before it ends with a letter, but does not belong to the run.
_LEFT = r"(?:(?<![\w-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"


def _constant(label: str) -> Callable[[re.Match[str]], str]:
    return lambda match: _marker(label)


def _token_shapes() -> Iterator[_Shape]:
    for label, hints, pattern in _TOKENS:
        # Letters first, the lookbehind second: only then does the search skip ahead quickly.
        first = re.match(r"\[\w+\]|\w", pattern)
        assert first is not None
        ahead = rf"(?={first[0]}){_LEFT}{pattern}"
        yield _Shape(tuple(hints.split()), ahead, _constant(label), re.ASCII)


# ------------------------------------------------------------------ keys, addresses, headers

_BREAK = r"\s|\\+[nr]"
_PEM = (
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    # Either all up to its end mark, or the beginning of a key that was cut.
    rf"(?:[^-]*+{_possessive('-(?!----)[^-]*+')}-----END [A-Z0-9 ]{{1,60}}-----"
    rf"|{_possessive(_possessive(_BREAK) + '[A-Za-z0-9+/=]{20,}+')})"
)
_TO_AT = r"[^\s/?#@\"'<>]*+@"
_WITH_SLASH = r"[^\s@/\"'<>]|/(?!/)"
# The authority up to its last "@"; or, with a slash in the password, up to the next "@",
# unless a port follows.
_URL = (
    rf"(://(?:{_MARKER}|(?!{_MARKER})[^\s/?#:@\"'<>]){{0,200}}:)"
    rf"(?:{_possessive(_TO_AT, 1)}(?<!:@)"
    rf"|(?!\d{{1,5}}[/?#]){_possessive(_WITH_SLASH, 1)}@)"
)
# Values that are about a secret without being one, and placeholders.
_ORDINARY = (
    r"(?!(?:null|none|nil|true|false|yes|no|on|off|undefined|unset|empty|missing|invalid"
    r"|expired|required|rejected|denied|unknown|unexpected|incorrect|wrong|failed|failure"
    r"|changed|authentication|scram-sha-256|md5|not|is|was|are|in|at|near|and|or|for|of|from"
    r"|by|to|the|an?|\$\d{1,3}|%s|\?|\*{3,}|x{4,}|<[\w -]{1,40}>)[,;.:!?)}\]\"']{0,3}(?:\s|$)"
    r"|\$\{|\$\()"
)
_TO_VALUE = r"\\{0,8}[\"']?[ \t]{0,4}[:=][ \t]{0,4}\\{0,8}[\"']?"
_AUTHORIZATION = (
    rf"([aA](?i:uthorization){_TO_VALUE})(?i:"
    rf"((?:bearer|basic|token|apikey|negotiate|ntlm)[ \t]{{1,4}}){_ORDINARY}[^\s\"'\\,;]++"
    r"|((?:digest|aws4-hmac-sha256)[ \t]{1,4})[^\r\n\"'\\]++"
    r"|(?=[\w.~+/-]{0,200}[0-9])[\w.~+/-]{12,}+={0,3})"
)
_BEARER = (
    r"([bB](?<![\w-].)(?i:earer)[ \t]{1,4})(?=[\w.~+/-]{0,60}[0-9])[\w.~+/-]{8,}+={0,3}"
)
_BASIC = r"([bB](?<![\w-].)(?i:asic)[ \t]{1,4})([A-Za-z0-9+/_-]{6,}+)={0,3}"
_COOKIE = rf"([cC](?i:ookie){_TO_VALUE})(?=[\w.-]{{1,80}}=)[^\r\n\"'\\]++"


def _url(match: re.Match[str]) -> str:
    return f"{match[1]}{_marker('url-password')}@"


def _authorization(match: re.Match[str]) -> str:
    scheme = match[2] or match[3] or ""
    return f"{match[1]}{scheme}{_marker('authorization')}"


def _bearer(match: re.Match[str]) -> str:
    return match[1] + _marker("authorization")


def _basic(match: re.Match[str]) -> str:
    """Hide only what decodes to user:password; "Basic authentication failed" stays."""
    token = match[2].replace("-", "+").replace("_", "/")
    try:
        decoded = base64.b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error:
        return match[0]
    return match[1] + _marker("authorization") if b":" in decoded else match[0]


def _cookie(match: re.Match[str]) -> str:
    return match[1] + _marker("cookie")


# ------------------------------------------------------------------ key=value

# A key names a secret by how it ends: password_encryption, max_tokens and secretName do not. The
# class in front lets the search skip ahead.
_KEY = (
    r"(?P<key>[acepstACEPST](?i:(?<=p)(?:ass(?:word|wd|phrase|wort)|wd)|(?<=[_-]p)ass"
    r"|(?<=t)oken|(?<=c)redentials?|(?<=s)ecret(?:[_-]?(?:access[_-]?)?key(?:_base)?)?"
    r"|(?:(?<=a)(?:ccess|ccount|pi|uth)|(?<=e)ncryption|(?<=p)rivate|(?<=s)(?:ession|igning))"
    r"[_-]?key))"
)
# A quote or separator ends a value only where what follows fits that: a
# password may contain any of these.
_STOP = r"(?:[\"'`,;&)}\]|](?=\s|$|[\"'`,;&:>)}\]|]|[\w.-]{1,40}=)|</|\\+[\"'nrt])"
_PLAIN = _possessive(rf"(?!{_STOP})\S", 1)
_ESCAPED = _possessive(r"[^\"'\\\r\n]|\\(?!\\*[\"'])")
_DOUBLE = _possessive(r"[^\"\\\r\n]|\\.")
_SINGLE = _possessive(r"[^'\\\r\n]|\\.|''")
_VALUE = (
    rf"(?P<value>{_MARKER}(?:(?!@){_PLAIN})?"
    rf"|(?P<deep>\\{{1,8}}[\"']){_ESCAPED}(?:\\{{1,8}}[\"'])?"
    rf"|\"{_DOUBLE}\"?|[eE]?'{_SINGLE}'?"
    rf"|\w{{1,40}}\(\s{{0,3}}[eE]?'{_SINGLE}'?"  # crypt('…'
    rf"|(?![,;&|)}}\]])(?:(?<=[A-Za-z]=)|(?![\[{{(])){_PLAIN})"
)
_PAIR = (
    rf"{_KEY}(?P<between>\\{{0,8}}[\"'`]?\s{{0,3}}(?:=>|:=|==?|:)\s{{0,3}}(?![=:])"
    r"|(?<=[dD])\s{1,3}(?=[eE]?')"  # ALTER ROLE … PASSWORD '…'
    rf"|>(?=[^<>\s]{{1,500}}</))(?i:{_ORDINARY}){_VALUE}"
)
_OPTION = (
    rf"-(?<!\S-)-?(?:[A-Za-z0-9]{{1,20}}[_-]){{0,3}}{_KEY}"
    rf"(?P<between>[ \t]{{1,3}})(?!-)(?i:{_ORDINARY}){_VALUE}"
)
_KEY_HINTS = ("pass", "pwd", "token", "credential", "secret", "key")
_HIDDEN = re.compile(rf"{_MARKER}|(?:\\*[\"']|[eE]')(?:{_MARKER})?(?:\\*[\"'])?")


def _label_of(key: str) -> str:
    key = key.lower()
    if "pass" in key or "pwd" in key:
        return "password"
    if "token" in key:
        return "token"
    return "api-key" if key.endswith("key") and "secret" not in key else "secret"


def _pair(match: re.Match[str]) -> str:
    """Keep the key and the quotes, hide what is between them."""
    key, value = match["key"], match["value"]
    directory = key.lower() == "pwd" and value.startswith(("/", "~"))
    if directory or _HIDDEN.fullmatch(value):
        return match[0]
    before = match[0][: match.start("value") - match.start()]
    opening = re.match(r"\\*[\"']|[eE]'", value)
    closing = re.search(r"\\{0,8}[\"']$", value[opening.end() :]) if opening else None
    quotes = (opening[0] if opening else "", closing[0] if closing else "")
    return before + _marker(_label_of(key)).join(quotes)


_SHAPES: tuple[_Shape, ...] = (
    _Shape(("private key",), _PEM, _constant("private-key")),
    _Shape(("://",), _URL, _url),
    *_token_shapes(),
    _Shape(("authorization",), _AUTHORIZATION, _authorization),
    _Shape(("bearer",), _BEARER, _bearer),
    _Shape(("basic",), _BASIC, _basic),
    _Shape(("cookie",), _COOKIE, _cookie),
    _Shape(_KEY_HINTS, _PAIR, _pair),
    _Shape(_KEY_HINTS, _OPTION, _pair),
)

# ------------------------------------------------------------------ known values


def _forms(secret: str) -> Iterator[str]:
    """Yield the encodings in which a known value can appear."""
    yield secret
    for encoded in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield encoded
        yield re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), encoded)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield escape(secret)
    yield secret.replace("'", "''")
    yield from _base64_forms(secret.encode("utf-8", "surrogatepass"))


def _base64_forms(secret: bytes) -> Iterator[str]:
    """Yield the base64 of the value within longer data, at each of the three alignments.

    Characters that share bits with what is before or behind the value are left out.
    """
    for shift, skip in ((0, 0), (1, 2), (2, 3)):
        data = bytes(shift) + secret
        encoded = base64.b64encode(data).decode().rstrip("=")
        stable = encoded[skip : len(encoded) - (len(data) % 3 > 0)]
        if len(stable) >= 8:
            yield stable
            yield stable.replace("+", "-").replace("/", "_")


class Redactor:
    """Hides secrets in text and in values of JSON.

    Args:
        known: Secret values; they are hidden in plain, URL-encoded, JSON-escaped and base64 form.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = frozenset(
            value.strip() for value in known if len(value.strip()) >= SHORTEST_KNOWN
        )
        forms = {form for value in self._known for form in _forms(value)}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        alternatives = "|".join(re.escape(form) for form in self._forms)
        return re.compile(f"({_MARKER})|{alternatives}")

    def with_known(self, *known: str) -> Redactor:
        """Return a redactor that also knows these values."""
        return Redactor(self._known.union(known))

    def text(self, text: str) -> str:
        """Return `text` without its secrets. Pass whole strings: a cut secret has no shape."""
        for _ in range(_PASSES):
            redacted = self._pass(text)
            if redacted == text:
                break
            text = redacted
        return text

    def _pass(self, text: str) -> str:
        if any(form in text for form in self._forms):
            text = self._pattern.sub(lambda found: found[1] or _marker("secret"), text)
        lower = text.lower()
        for shape in _SHAPES:
            if any(hint in lower for hint in shape.hints):
                text = shape.pattern.sub(shape.replace, text)
        return text

    def value(self, value: Any) -> Any:
        """Return a JSON-like value without its secrets; a key that names a secret hides all below it.

        Mappings become dicts, sequences lists; numbers, booleans, None and dates stay; any other
        value becomes its text.
        """
        return self._value(value, 0)

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (bool, int, float, date)):
            return value
        if isinstance(value, str):
            return self.text(value)
        if depth >= DEEPEST:
            return _marker("secret")
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): self._entry(str(key), item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._value(item, depth + 1) for item in value]
        if isinstance(value, (bytes, bytearray)):
            return self.text(value.decode("utf-8", "replace"))
        return self.text(str(value))

    def _entry(self, key: str, value: Any, depth: int) -> Any:
        label = _secret_key(key)
        if label is None or value is None or isinstance(value, bool) or value == "":
            return self._value(value, depth)
        if isinstance(value, str) and _HIDDEN.fullmatch(value):
            return value
        return _marker(label)


_SECRET_HEADERS = {
    "authorization": "authorization",
    "proxy-authorization": "authorization",
    "cookie": "cookie",
    "set-cookie": "cookie",
}


def _secret_key(key: str) -> str | None:
    """Return the label of the secret that a key of this name holds, or None."""
    name = key.strip().lower()[-200:]
    if name in _SECRET_HEADERS:
        return _SECRET_HEADERS[name]
    if name.endswith("tokens"):  # a number of tokens, as the API counts them
        return None
    named = re.search(rf"{_KEY}s?\Z", name)
    return _label_of(named["key"]) if named else None


# ------------------------------------------------------------------ log events

_OF_STRUCTLOG = (
    "_record",
    "_from_structlog",
)  # objects that its formatter takes out again


def redacting(
    redactor: Redactor,
) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    """Return a structlog processor that redacts every value of an event, including its exception.

    Place it right before the renderer.
    """

    def process(
        logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        trace = _trace(event.pop("exc_info", None))
        if trace:
            event["exception"] = trace
        own = {name: event.pop(name) for name in _OF_STRUCTLOG if name in event}
        return {**redactor.value(event), **own}

    return process


def _trace(exc_info: Any) -> str:
    if exc_info is True:
        exc_info = sys.exc_info()
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    if not isinstance(exc_info, BaseException):
        return ""
    return "".join(traceback.format_exception(exc_info)).rstrip()


# ------------------------------------------------------------------ observations

_MESSAGE = 500
_COMPONENT = 200
_FACT = 2000


class Sanitizer:
    """Cleans, redacts and bounds the text of observations before it becomes part of a ticket.

    Component names are part of a ticket's key, so every one is sanitized, and cached, as there may be
    a thousand of them in every cycle. Messages are sanitized when a ticket opens.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._components: dict[str, str] = {}

    def sanitize(self, text: str, limit: int = _MESSAGE) -> str:
        """Return one printable line without secrets, of at most `limit` characters."""
        return one_line(self._redactor.text(clean(text)), limit)

    def observation(self, observation: Observation) -> Observation:
        """Return the observation with component names that are safe in a key."""
        if len(self._components) > 4 * len(observation.signals) + 1000:
            self._components.clear()
        signals = tuple(
            (
                signal
                if (name := self._component(signal.component)) == signal.component
                else replace(signal, component=name)
            )
            for signal in observation.signals
        )
        return replace(observation, signals=signals)

    def _component(self, raw: str) -> str:
        name = self._components.get(raw)
        if name is None:
            name = self._components[raw] = self.sanitize(raw, _COMPONENT)
        return name

    def violation(self, violation: Violation) -> Violation:
        """Return the violation with a message and facts that are safe to store and to show."""
        facts = {
            self.sanitize(name, 100): (
                self.sanitize(fact, _FACT) if isinstance(fact, str) else fact
            )
            for name, fact in violation.facts.items()
        }
        return replace(violation, message=self.sanitize(violation.message), facts=facts)
