"""Redaction: known secret values and known shapes of secrets are hidden, in whole strings.

Redact before shortening: half a secret has no shape. Everything here takes linear time on any input: a
search starts at a rare character or a fixed word, what it rejects was looked at for a bounded number of
characters, and what it hides is not read again. No pattern uses what differs between Python 3.11.0 and 3.14,
such as possessive groups (https://github.com/python/cpython/issues/106052). A secret becomes
``[redacted:<label>]``; redacting twice changes nothing. `Sanitizer` applies all of this to observations.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import traceback
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
    Set,
)
from dataclasses import replace
from datetime import date
from functools import cached_property
from typing import Any, cast
from urllib.parse import quote, quote_plus

from midwatch._moved import renamed
from midwatch.model import Observation, Signal, Violation
from midwatch.redaction.contexts import (
    FUNCTION_HINT,
    MANIFEST_HINT,
    OPTION_HINT,
    function_spans,
    manifest_spans,
    option_spans,
)
from midwatch.redaction.hints import Hints, find_any
from midwatch.redaction.markers import IS_MARKER, MARKER, marker
from midwatch.redaction.name_hints import NAME_HINTS
from midwatch.redaction.names import label_of
from midwatch.redaction.pairs import (
    LONGEST_READ_NAME,
    hide,
    lowered,
    pair_spans,
    without_overlaps,
    words_in,
)
from midwatch.redaction.shapes import RULES, WORD_HINTS, hide_words
from midwatch.redaction.tables import (
    literals_before,
    literals_beside,
    row_spans,
    table_spans,
)
from midwatch.text import clean, one_line

SHORTEST_KNOWN = 6
"""Known values of fewer characters are ignored: they occur in ordinary text."""
DEEPEST = 60
"""Levels of nesting that `Redactor.value` follows; deeper values are hidden."""
_LONGEST_NAME, _MOST_NAMES = 40, 500
_SHORTEST_TOKEN = (
    15  # characters of a secret that is a single word, and shows by itself
)
_SHORT = 10_000  # characters in which known values are looked for one after the other
_PASSES = 6  # a hidden value can uncover the one beside it; two passes are usual


# ------------------------------------------------------------------ known values

# As by html.escape, whose module has a table of two thousand names.
_IN_HTML = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}
)


def _forms(secret: str) -> Iterator[str]:
    """Yield the encodings in which a known value can appear."""
    yield secret
    for encoded in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield encoded
        yield re.sub(r"%[0-9A-F]{2}", lambda code: code[0].lower(), encoded)
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield secret.translate(_IN_HTML)
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


_NAMES_SECRET = (
    *("pass", "token", "secret", "key", "cred", "pw", "psk", "otp", "mdp"),
    *("contrase", "wachtwoord", "kennwort", "parola", "senha", "heslo", "haslo"),
)
_SQL_WORDS = (
    "insert",
    "values",
    "select",
    "update",
    "copy",
    "key (",
    "replace",
    ") = (",
)


def _hide_named(text: str, hints: Set[str]) -> str:
    """Return the text without what is secret because of a name: of a setting, a column, a manifest."""
    if not _has_named(text, hints):
        return text
    lower = lowered(text)
    if text.isascii() and not any(word in lower for word in _NAMES_SECRET):
        return text
    words = words_in(text)
    apart = [word for word in words if text[word.end : word.end + 1] not in ("=", ":")]
    spans = [*pair_spans(text, lower, words, hints)]
    if "'" in text or "$$" in text:
        spans += literals_beside(text, words)
        spans += literals_before(text)
    if "manifest" in hints:
        spans += manifest_spans(text)
    if "sql" in hints and any(word in lower for word in _SQL_WORDS):
        spans += row_spans(text, lower, apart)
    if "\n" in text:
        spans += table_spans(text, apart)
    return hide(text, without_overlaps(spans))


_BESIDE_NAMES = frozenset({"name", "literal", "into", "manifest"})
_VALUES_OF_CORES = frozenset({"value", "tag"})


def _has_named(text: str, hints: Set[str]) -> bool:
    """Return whether there can be the value of a name, or a name elsewhere and a place for its value."""
    if not hints.isdisjoint(_BESIDE_NAMES):
        return True
    if hints.isdisjoint(_VALUES_OF_CORES):
        return False
    # A name is read up to a length, so a longer word may be cut at the end of what names a secret.
    return "core" in hints or any(
        len(word) >= LONGEST_READ_NAME for word in text.split()
    )


def _hide_arguments(text: str) -> str:
    return hide(text, function_spans(text, lowered(text))) if "'" in text else text


# The rules in their order: each runs where one of its hints is in the text.
_RULES: tuple[tuple[frozenset[str], Callable[[str, Set[str]], str]], ...] = (
    *((frozenset({name}), lambda text, _, rule=rule: rule(text)) for name, _, rule in RULES),
    (frozenset(WORD_HINTS), hide_words),
    (frozenset({"option"}), lambda text, _: hide(text, option_spans(text))),
    (frozenset({"function"}), lambda text, _: _hide_arguments(text)),
    (_BESIDE_NAMES | _VALUES_OF_CORES, _hide_named),
)  # fmt: skip
HINTS = Hints(
    {name: hint for name, hint, _ in RULES}
    | WORD_HINTS
    | {"option": OPTION_HINT, "function": FUNCTION_HINT, "manifest": MANIFEST_HINT}
    | {"sql": f"(?i){'|'.join(map(re.escape, _SQL_WORDS))}"}
    | NAME_HINTS
)
_BY_ITSELF = HINTS.all.difference(NAME_HINTS, {"sql", "manifest"})

# The closing quote is optional: what does not match would be read again from the next quote.
_JSON_STRING = re.compile(r'"(?<=[:,\[{ ]")[^"\\\n]*(?:\\[^\n][^"\\\n]*)*"?')


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
        self._keys: dict[str, tuple[str, str | None]] = {}
        self._hints_of = HINTS.of

    def with_known(self, *known: str) -> Redactor:
        """Return a redactor that also knows these values."""
        return Redactor(self._known.union(known))

    def text(self, text: str) -> str:
        """Return `text` without its secrets. Pass whole strings: a cut secret has no shape."""
        for _ in range(_PASSES if text else 0):
            redacted = self._pass(text)
            if redacted is text or redacted == text:
                break
            text = redacted
        return text

    def _in_json(self, match: re.Match[str]) -> str:
        """Redact a string of JSON with escapes as what it stands for.

        That is a private key, a manifest, a statement.
        """
        if "\\" not in match[0]:
            return match[0]
        try:
            plain = json.loads(match[0], strict=False)
        except ValueError:
            return match[0]
        redacted = self._pass(plain)
        return (
            match[0]
            if redacted == plain
            else json.dumps(redacted, ensure_ascii=match[0].isascii())
        )

    def _pass(self, text: str) -> str:
        if "\\" in text:
            text = _JSON_STRING.sub(self._in_json, text)
        if self._has_known(text):
            text = self._hide_known(text)
        if len(text) < _SHORTEST_TOKEN and text.isidentifier():
            return text
        found = self._hints_of(text)
        if found.isdisjoint(_BY_ITSELF) and not _has_named(text, found):
            return text
        hints: Set[str] | None = found
        for names, rule in _RULES:
            if hints is None:  # the rule before has changed the text
                hints = self._hints_of(text)
            if not hints.isdisjoint(names):
                hidden = rule(text, hints)
                if hidden != text:
                    text, hints = hidden, None
        return text

    def _has_known(self, text: str) -> bool:
        if len(text) > _SHORT and self._forms:
            return self._search(text.encode("utf-8", "surrogatepass")) is not None
        for form in self._forms:
            if form in text:
                return True
        return False

    def _hide_known(self, text: str) -> str:
        there = (re.escape(form) for form in self._forms if form in text)
        pattern = re.compile(f"({MARKER})|{'|'.join(there)}")
        return pattern.sub(lambda found: found[1] or marker("secret"), text)

    @cached_property
    def _search(self) -> Callable[[bytes], object]:
        """The search for any known form in a long text, of which there may be hundreds."""
        return find_any(self._forms)

    def value(self, value: Any) -> Any:
        """Return a JSON-like value without its secrets; a key that names a secret hides all below it.

        Mappings become dicts, sequences lists; numbers, booleans, None and dates stay; any other
        value becomes its text.
        """
        return self._value(value, 0)

    def _value(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if value is None or isinstance(value, (bool, int, float, date)):
            return value
        if depth >= DEEPEST:
            return marker("secret")
        if isinstance(value, (dict, Mapping)):
            return self._members(value, depth + 1)
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._entries(list(value), depth + 1)
        if isinstance(value, (bytes, bytearray)):
            return self.text(value.decode("utf-8", "replace"))
        return self.text(str(value))

    def _members(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        beside = _members_with_secrets(value)
        members = {}
        for key, item in value.items():
            name, label = self._key(key if type(key) is str else str(key))
            if beside:
                label = beside.get(key) or label
            if label is None or item is None or isinstance(item, bool) or item == "":
                members[name] = self._value(item, depth)
            elif isinstance(item, str) and IS_MARKER.fullmatch(item):
                members[name] = item
            else:
                members[name] = marker(label)
        return members

    def _key(self, key: str) -> tuple[str, str | None]:
        """Return a key without secrets, and the label of the secret below it.

        Short keys are kept: they are the same again and again, as those of log lines are.
        """
        known = self._keys.get(key)
        if known is None:
            known = (self.text(key), _secret_key(key))
            if len(key) <= _LONGEST_NAME:
                if len(self._keys) >= _MOST_NAMES:
                    self._keys.clear()
                self._keys[key] = known
        return known

    def _entries(self, values: list[Any], depth: int) -> list[Any]:
        """Return the entries of a list; what follows an option such as `--password` is hidden."""
        labels = [None, *(_option_label(value) for value in values)]
        return [
            (
                marker(label)
                if label and isinstance(value, str)
                else self._value(value, depth)
            )
            for value, label in zip(values, labels, strict=False)
        ]


_SECRET_HEADERS = {
    "authorization": "authorization",
    "proxy-authorization": "authorization",
    "cookie": "cookie",
    "set-cookie": "cookie",
}


def _secret_key(key: str) -> str | None:
    """Return the label of the secret that a key of this name holds, or None."""
    name = key.strip()[-200:]
    if name.lower() in _SECRET_HEADERS:
        return _SECRET_HEADERS[name.lower()]
    if name.lower().endswith("tokens"):  # a number of tokens, as the API counts them
        return None
    return label_of(name) or label_of(name.removesuffix("s"))


_NAMES, _VALUES = ("name", "key", "parameterkey"), ("value", "parametervalue")
_OF_VALUES = frozenset(map(len, _VALUES))


def _members_with_secrets(value: Mapping[Any, Any]) -> dict[Any, str]:
    """Return the labels of members that hold a secret because of another one: `name`, or `kind: Secret`."""
    if value.get("kind") == "Secret":
        return {"data": "secret", "stringData": "secret"}
    if len(value) > 10 or _OF_VALUES.isdisjoint(map(len, map(str, value))):
        return {}
    members = {str(key).lower(): key for key in value}
    named = next((value[members[one]] for one in _NAMES if one in members), None)
    label = _secret_key(named) if isinstance(named, str) else None
    return {members[one]: label for one in _VALUES if label and one in members}


def _option_label(value: Any) -> str | None:
    is_option = isinstance(value, str) and value.startswith("-") and len(value) < 60
    return label_of(value) if is_option and "=" not in value else None


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
        return one_line(self._redactor.text(clean(text, longest=None)), limit)

    tidy = sanitize  # its name in version 0.1.0, for one more release

    def observation(self, observation: Observation) -> Observation:
        """Return the observation with component names that are safe in a key."""
        signals = observation.signals
        names = self.components([one.component for one in signals])
        safe = tuple(map(self.signal, signals, names))
        return replace(observation, signals=safe)

    def components(self, names: Sequence[str], among: int = 0) -> list[str]:
        """Return the component names of an observation's signals as they are safe in a key; `among` is how many it has if these are not all."""
        known = self._components
        if len(known) > 4 * max(len(names), among) + 1000:
            known.clear()
        found = list(map(known.get, names))
        unknown = [number for number, name in enumerate(found) if name is None]
        new = list({names[number] for number in unknown})
        for start in range(0, len(new), _TOGETHER):
            texts = self._sanitize_all(new[start : start + _TOGETHER])
            for raw, text in texts.items():
                name = one_line(text, _COMPONENT)
                known[raw] = raw if name == raw else name
        for number in unknown:
            found[number] = known[names[number]]
        return cast(list[str], found)

    def signal(self, signal: Signal, component: str) -> Signal:
        """Return a signal of which the safe name of its component is known."""
        if component == signal.component and not signal.silenced_by:
            return signal
        by = self._component(signal.silenced_by)
        return replace(signal, component=component, silenced_by=by)

    def _component(self, raw: str) -> str:
        name = self._components.get(raw)
        if name is None:
            name = self._components[raw] = self.sanitize(raw, _COMPONENT)
        return name

    def violation(self, violation: Violation) -> Violation:
        """Return the violation with a message and facts that are safe to store and to show."""
        return self.violations([violation])[0]

    def violations(self, violations: Sequence[Violation]) -> list[Violation]:
        """Do the same for many: short texts are redacted together."""
        found: list[Violation] = []
        for start in range(0, len(violations), _TOGETHER):
            some = violations[start : start + _TOGETHER]
            texts = {text for one in some for text in _texts_of(one)}
            safe = self._sanitize_all(list(texts))
            found += [_with_texts(one, safe) for one in some]
        return found

    def _sanitize_all(self, texts: Sequence[str]) -> dict[str, str]:
        """Return each text cleaned and redacted, not shortened yet.

        Each call of the redactor has its price. So short texts of one line, without quotes and braces, are first redacted
        as paragraphs of one text: where nothing is hidden then, nothing would be hidden in one of them.
        """
        cleaned = [clean(text, longest=None) for text in texts]
        plain = [text for text in cleaned if _PLAIN.fullmatch(text)]
        together = "\n\n".join(plain)
        known = set(plain) if self._redactor.text(together) == together else set()
        return {
            raw: text if text in known else self._redactor.text(text)
            for raw, text in zip(texts, cleaned, strict=True)
        }


_TOGETHER = 100
"""Violations whose texts are redacted together: a secret in one of them costs a call for each text."""


def _texts_of(violation: Violation) -> Iterator[str]:
    yield violation.message
    for name, fact in violation.facts.items():
        yield name
        if _is_text(fact):
            yield str(fact)


def _with_texts(violation: Violation, safe: Mapping[str, str]) -> Violation:
    """Return a violation with the safe form of each of its texts, shortened."""
    message = one_line(safe[violation.message], _MESSAGE)
    facts = {
        one_line(safe[name], 100): (
            one_line(safe[str(fact)], _FACT) if _is_text(fact) else fact
        )
        for name, fact in violation.facts.items()
    }
    if not facts and message == violation.message:
        return violation
    return replace(violation, message=message, facts=facts)


_PLAIN = re.compile(r"[\w .,:;/()%@+=?&#~!*|-]{0,400}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def __getattr__(name: str) -> object:
    return renamed(__name__, name)
