"""Hide what stands in a known place: options of programs, arguments of functions, manifests of Secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from midwatch.redaction.hints import LETTER, SPACE
from midwatch.redaction.markers import IS_MARKER
from midwatch.redaction.names import is_algorithm, is_ordinary, is_placeholder
from midwatch.redaction.pairs import Span, without_overlaps
from midwatch.redaction.values import value_at

# ------------------------------------------------------------------ programs

# Options of programs that stand before a password: programs, option, and what may stand between.
_PASSWORD_OPTIONS = tuple(
    (frozenset(programs.split()), option, re.compile(gap))
    for programs, option, gap in (
        ("mysql mysqldump mysqladmin mysqlimport mysqlcheck mysqlshow mysqlsh mysqlslap mysqlbinlog mariadb mariadb-dump"
         " mariadb-admin mycli xtrabackup mariabackup innobackupex pt-kill pt-query-digest 7z 7za 7zz", "p", r"(?=\S)"),
        ("sshpass", "p", r"[ ]?(?=\S)"),
        ("login mongo mongosh mongodump mongorestore mongoexport mongostat useradd usermod snowsql cqlsh rpk", "p", r"[ =]+"),
        ("zip unzip sqlcmd bcp isql mosquitto_pub mosquitto_sub ipmitool", "P", r"[ ]?(?=\S)"),
        ("redis-cli valkey-cli keydb-cli http https", "a", r"[ ]+(?:[\w.@-]{1,100}:)?"),
        ("ldapsearch ldapadd ldapmodify ldapdelete ldapwhoami ldappasswd", "w", r"[ ]?(?=\S)"),
        ("security", "w", r"[ ]+"),
        ("snmpwalk snmpget snmpset snmpbulkwalk snmptrap", "cAX", r"[ ]+"),
        ("curl wget xh ab hey wrk siege elasticdump", "u", r"[ =]?(?:\\?[\"'])?[\w.@\\-]{0,100}:"),
        ("ab", "A", r"[ ]?[\w.@-]{1,100}:"),
        ("curl", "U", r"[ ]?[\w.@-]{1,100}:"),
        ("lftp ftp ncftpget", "u", r"[ ][\w.@-]{1,100},"),
        ("smbclient rpcclient", "U", r"[ ]?[\w.@\\-]{1,100}%"),
    )
)  # fmt: skip
_LETTERS = "".join(
    sorted({one for _, option, _ in _PASSWORD_OPTIONS for one in option})
)
_OPTION = re.compile(
    rf" -(?:(?P<letter>[a-zA-Z]{{1,5}}u(?=[ =])|[{_LETTERS}])(?=[^-])|-(?:proxy-)?user[ =](?=\S{{1,200}}:))"
)
_OPTIONS_IN_QUOTES = tuple(
    (rf"{quote}-", re.compile(rf"{quote}-(?P<letter>[{_LETTERS}])(?=[^-\"'])"))
    for quote in "\"'"
)
_PROGRAM = re.compile(r"[\w.-]+")
_OPTION_VALUE = re.compile(
    r"\\{0,8}([\"'])(?P<quoted>[^\n]{1,500}?)\\{0,8}\1|(?P<plain>[^\s\"']{1,1000})"
)


def option_spans(text: str) -> Iterator[Span]:
    """Yield the passwords in the options of known programs: `mysql -pX`, `curl -u user:X`."""
    done = 0
    options = [*_OPTION.finditer(text)]
    for opening, pattern in _OPTIONS_IN_QUOTES:
        if opening in text:
            options += pattern.finditer(text)
    options.sort(key=lambda one: one.start())
    for found in options:
        if found.start() < done:
            continue
        line = text.rfind("\n", max(found.start() - 400, 0), found.start()) + 1
        command = text[max(line, found.start() - 400) : found.start()]
        command = command[max(map(command.rfind, "|;&")) + 1 :]
        programs = {word.removesuffix(".exe") for word in _PROGRAM.findall(command)}
        letter, at = (found["letter"] or "u")[-1], found.end()
        for known, letters, gap in _PASSWORD_OPTIONS:
            if letter not in letters or not known & programs:
                continue
            between = (
                re.compile(r"[\w.@\\\"'-]{0,100}:").match(text, at)
                if not found["letter"]
                else gap.match(text, at)
            )
            value = _OPTION_VALUE.match(text, between.end()) if between else None
            if value is None:
                continue
            start, end = value.span("quoted" if value["quoted"] else "plain")
            if (
                value[0][0] == "-"
                or is_ordinary(text[start:end], "")
                or IS_MARKER.match(text, start)
            ):
                continue
            yield Span(start, end, "password")
            done = end
            break


def _hint_options() -> str:
    """Return a program, and behind it in its command an option that it takes a password with."""
    hints = []
    for programs, letters, _ in _PASSWORD_OPTIONS:
        option = f"[ \"']-[{letters}]"
        if "u" in letters:
            option = r"(?:[ \"']-[a-zA-Z]*u| --(?:proxy-)?user[ =])"
        some = "|".join(map(re.escape, sorted(programs)))
        hints.append(rf"(?:{some})(?:\.exe)?(?:[^\w.\-|;&\n][^|;&\n]*)?{option}")
    return "|".join(hints)


# ------------------------------------------------------------------ words before a secret

_BEFORE = (  # a word that is looked for in lower case, its hint, and what stands before the secret
    ("identified", f"(?i)identified{SPACE}+(?:with|by|as)", r"(?i:identified\s+(?:with\s+[\w'\"]{1,40}\s+)?(?:by(?:\s+password)?|as)\s+)"),
    ("set password", "(?i)set password", r"(?i:set\s+password\s+for\s+[^\s=]{1,100}\s{0,3}=\s{0,3}(?!password))"),
    ("requirepass", f"requirepass{SPACE}", r"requirepass\s+"),
    ("masterauth", f"masterauth{SPACE}", r"masterauth\s+"),
    ("insecure-password", f"insecure-password{SPACE}", r"insecure-password\s+"),
    ("stats auth", "stats auth", r"stats\s+auth\s+[\w.-]{1,60}:"),
    ("configure set", "configure set", r"configure\s+set\s+(?:[\w.-]{1,40}\.)?aws_(?:secret_access_key|session_token)\s+"),
    ("rabbitmqctl", f"rabbitmqctl{SPACE}", r"rabbitmqctl\s+(?:add_user|change_password|authenticate_user)\s+\S{1,100}\s+"),
    ("htpasswd", f"htpasswd{SPACE}", r"htpasswd\s+-\w{0,5}b\w{0,5}\s+(?:-\w\s+)?(?:\S{1,200}\s+){1,2}(?=\S{1,200}[ \t]*$)"),
    ("net use", "(?i)net use", r"(?i:net\s+use\s[^\n]{0,200}?/user:\S{1,100}\s+)"),
    ("echo ", "chpasswd", r"(?i:echo\s+)(?:-\w\s+)?[\"']?[\w.-]{1,40}:(?=[^\n]{1,200}\|\s{0,3}(?:sudo\s)?chpasswd)"),
    ("auth ", "AUTH ", r"(?<![\w-])AUTH\s+(?:default\s+)?(?!(?:PLAIN|LOGIN|CRAM|NTLM|XOAUTH|TLS)\b|[(/])(?=\"|\S{0,60}[0-9])"
     r"|(?<![\w-])AUTH\s+(?:PLAIN|LOGIN|XOAUTH2)\s+(?=[A-Za-z0-9+/=]{8,})"),
    ("auth\"", "AUTH\"", r"(?<![\w-])AUTH\"\s+(?:\"default\"\s)?(?=\")"),
    ("pass ", "PASS ", r"(?:^|(?<=[<>*:] ))PASS\s+(?=\S+\r?$)(?!\S*[/.(])"),
)  # fmt: skip
_SECRET_BEHIND = tuple(
    (word, re.compile(pattern, re.MULTILINE)) for word, _, pattern in _BEFORE
)


def word_spans(text: str, lower: str, hints: Set[str]) -> Iterator[Span]:
    """Yield what stands behind words of commands and protocols: `IDENTIFIED BY '…'`, `requirepass …`."""
    spans: list[Span] = []
    for word, pattern in _SECRET_BEHIND:
        at = lower.find(word) if word in hints else -1
        while at >= 0:
            if found := pattern.match(text, at):
                start, end, _ = (
                    value_at(text, found.end())
                    if found.end() < len(text)
                    else (0, 0, False)
                )
                value = text[start : min(end, start + 400)]
                if (
                    value
                    and not is_ordinary(value, "")
                    and not is_placeholder(text, start)
                    and not IS_MARKER.match(text, start)
                ):
                    spans.append(Span(start, end, "password"))
                    at = end - 1
            at = lower.find(word, at + 1)
    yield from without_overlaps(spans)


# ------------------------------------------------------------------ functions

_FUNCTIONS = ("crypt", "hmac", "pgp_", "passw", "token", "secret")
_CALL = re.compile(r"\((?<=[\w\s]\()")
_NAME_BEFORE = re.compile(r"\s?\w*")
_TAKES_SECRETS = re.compile(
    r"(?i:(?:pgp_\w+|crypt|hmac|\w*(?:en|de)crypt\w*|(?:old_)?passw(?:or)?d)\s?"
    r"|(?:\w+_)?(?:set|change|check|reset|update|verify|create)_(?:\w+_)?(?:passw(?:or)?d\s?|secret|token))\("
)
_ARGUMENT = re.compile(
    r"(?P<literal>(?:[eEnN]|[uU]&)?'(?:[^'\\\n]|''|\\.)*'?)|\$(?P<tag>\w{0,20})\$|(?P<open>\()|(?P<close>\))|;|\n(?!\s)"
)


def function_spans(text: str, lower: str) -> Iterator[Span]:
    """Yield the literals in calls of functions that take keys and passwords: `crypt('…', salt)`."""
    at = 0 if any(word in lower for word in _FUNCTIONS) else len(text)
    while found := _CALL.search(text, at):
        at, depth = found.end(), 1
        before = text[max(at - 80, 0) : at - 1].lower()
        if not any(word in before for word in _FUNCTIONS):
            continue
        start = at - 1 - len(_NAME_BEFORE.match(before[::-1])[0])  # type: ignore[index]
        if not _TAKES_SECRETS.fullmatch(text, start, at):
            continue
        while depth > 0 and (part := _ARGUMENT.search(text, at)):
            at = part.end()
            depth += bool(part["open"]) - bool(part["close"])
            if part["literal"]:
                first = text.index("'", part.start()) + 1
                last = at - (at > first and text[at - 1] == "'")
                value = text[first:last]
                if value and not is_algorithm(value) and not IS_MARKER.fullmatch(value):
                    yield Span(first, last, "secret")
            elif not (part["open"] or part["close"] or part["tag"]):
                break


# ------------------------------------------------------------------ Kubernetes

_MEMBERS_OF_SECRET = re.compile(
    r"ata(?:\\{0,8}[\"'])?\s{0,3}:\s{0,3}(?P<open>\{|\r?\n)"
)
_BEGIN_MEMBERS = re.compile(r"(?:^|[\s,{])(?:\\{0,8}[\"'])?(?:d|stringD)\Z")
_KIND_SECRET = re.compile(
    r"kind(?:\\{0,8}[\"'])?\s{0,3}:\s{0,3}(?:\\{0,8}[\"'])?Secret\b(?!\w)"
)
_MEMBER = re.compile(r"(?P<start>[\w./-]{1,253}\\{0,8}[\"']?\s{0,3}:\s{0,3})(?=\S)")


def manifest_spans(text: str) -> Iterator[Span]:
    """Yield all values of Kubernetes Secrets, whatever their names."""
    if not _KIND_SECRET.search(text):
        return
    for found in _MEMBERS_OF_SECRET.finditer(text):
        at = found.start()
        if not _BEGIN_MEMBERS.search(text[max(at - 17, 0) : at]):
            continue
        at = found.end()
        if found["open"] == "{":
            close = text.find("}", at)
            limit = close if close >= 0 else len(text)
        else:
            indent = re.compile(r"[ \t]*").match(text, at)
            if indent is None or not indent[0]:
                continue
            ends = re.compile(rf"\n(?!{indent[0]}|\s*\n)").search(text, at)
            limit = ends.start() if ends else len(text)
        while member := _MEMBER.search(text, at, limit):
            start, end, _ = value_at(text, member.end())
            at = min(end, limit)
            if text.startswith(("|", ">"), start):
                at = member.end()
                following = re.compile(r"[|>][^\n]*\n\s*").match(text, start)
                if following:
                    stop = re.compile(r"\n[ \t]*[\w.-]+:|\Z").search(
                        text, following.end(), limit
                    )
                    start, end = following.end(), stop.start() if stop else limit
                    at = end
            if start < at and not IS_MARKER.fullmatch(text, start, at):
                yield Span(start, at, "secret")


# ------------------------------------------------------------------ hints

WORDS_BEFORE = {word: hint for word, hint, _ in _BEFORE}
OPTION_HINT = _hint_options()
FUNCTION_HINT = (
    rf"(?i:(?:crypt|pgp_){LETTER}*|hmac|passw(?:or)?d|secret|token){SPACE}?\("
)
MANIFEST_HINT = rf"kind(?:\\{{0,8}}[\"'])?{SPACE}*:{SPACE}*(?:\\{{0,8}}[\"'])?Secret"
