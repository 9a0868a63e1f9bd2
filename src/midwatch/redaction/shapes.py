"""Shapes of secrets that show by themselves: tokens with a prefix, private keys, URLs, headers, hashes, commands."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import cached_property

from midwatch.redaction.contexts import WORDS_BEFORE, word_spans
from midwatch.redaction.hints import (
    AUTHORIZATION_MARKER,
    HIGH,
    MARKERS,
    SPACE,
    unless_hidden,
    windows,
)
from midwatch.redaction.markers import IS_MARKER, MARKER, marker
from midwatch.redaction.pairs import (
    Span,
    any_of,
    hide,
    lowered,
    rarest,
    without_overlaps,
)


@dataclass(frozen=True)
class Shape:
    """A secret's shape. A text that has it contains `word` in lower case, and the shape `begins` with it or not.

    To compile all of them takes as long as many a command; most never meet a text with the `hint`.
    """

    word: str
    hint: str
    source: str  # the secret is what stands behind its last group that matches, or all of it
    label: str
    begins: bool = True
    is_secret: Callable[[re.Match[str]], bool] = bool

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.source)

    def spans(self, text: str, lower: str) -> Iterator[Span]:
        """Yield such secrets; `lower` is the text as `lowered` returns it."""
        for found in self._found(text, lower):
            if self.is_secret(found):
                last = found.lastindex
                start = found.end(last) if last else found.start()
                yield Span(start, found.end(), self.label)

    def _found(self, text: str, lower: str) -> Iterator[re.Match[str]]:
        at = lower.find(self.word)
        if at >= 0 and not self.begins:
            yield from self.pattern.finditer(text)
            return
        while at >= 0:
            if found := self.pattern.match(text, at):
                yield found
            at = lower.find(self.word, found.end() if found else at + 1)


def _behind(label: str) -> Callable[[re.Match[str]], str]:
    """Return what replaces all behind the first group."""
    return lambda match: match[1] + marker(label)


# ------------------------------------------------------------------ tokens with a prefix of their own

# For each label: prefixes that end with a letter which is rare in text, and what follows.
_TOKENS: tuple[tuple[str, str, str], ...] = (
    ("anthropic-key", "sk-ant-", r"[\w-]{8,}"),
    # 16 characters without a dash, and a digit, distinguish a key from a name with dashes.
    (
        "api-key",
        "sk-",
        r"(?=[\w-]{0,200}[0-9])(?:[A-Za-z0-9]{1,12}-){0,3}[A-Za-z0-9_]{16}[\w-]*",
    ),
    ("aws-key-id", "AK ABK ACK ASK", r"IA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("aws-key-id", "AS", r"IA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("github-token", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"[A-Za-z0-9_]{20,}"),
    (
        "gitlab-token",
        "glpat- glptt- gldt- glrt- glcbt- glsoat- glft- glagent- glimt- gloas- glffct-",
        r"[\w.-]{16,}",
    ),
    (
        "slack-token",
        "xoxa- xoxb- xoxc- xoxd- xoxe- xoxo- xoxp- xoxr- xoxs-",
        r"[%A-Za-z0-9-]{10,}",
    ),
    ("slack-token", "xoxe.xoxp- xoxe.xoxb- xapp-", r"[A-Za-z0-9-]{10,}"),
    ("google-key", "AIz", r"a[\w-]{35,}"),
    ("google-token", "GOCSPX-", r"[\w-]{20,}"),
    ("stripe-key", "sk_live_ rk_live_ sk_test_ rk_test_", r"[A-Za-z0-9]{10,}"),
    ("stripe-key", "whsec_", r"[A-Za-z0-9+/=]{16,}"),
    ("npm-token", "npm_", r"[A-Za-z0-9]{30,}"),
    ("pypi-token", "pypi-", r"AgE[\w-]{20,}"),
    ("sendgrid-key", "SG", r"\.[\w-]{16,64}\.[\w-]{16,}"),
    ("huggingface-token", "hf_ api_org_", r"[A-Za-z0-9]{30,}"),
    ("docker-token", "dckr_pat_ dckr_oat_", r"[\w-]{20,}"),
    ("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", r"[a-f0-9]{40,}"),
    ("jwt", "eyJ", r"[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*){0,3}"),
    ("midwatch-token", "mwt_", r"[\w-]{40,}"),
    ("token", "eyJrIjoi ops_eyJ", r"[\w-]{40,}={0,2}"),
    (
        "token",
        "glsa_ glc_ shpat_ shpss_ shpca_ shppa_ bkua_ lin_api_ sbp_ nfp_ figd_ ntn_ rdme_ rubygems_",
        r"[\w+/=]{20,}",
    ),
    (
        "token",
        "sntrys_ sntryu_ CCIPAT_ CCIPRJ_ pscale_tkn_ pscale_pw_ secret_ ops_ tfp_ flyv1_ fm2_ fo1_",
        r"[\w+/=.-]{30,}",
    ),
    (
        "token",
        "tskey- NRAK- NRII- NRJS- PMAK- HRKU- LTAI- pul- ATATT3x ATCTT3x ATBB dapi- pat-",
        r"[\w=-]{20,}",
    ),
    (
        "api-key",
        "gsk_ r8_ phx_ xkeysib- re_ pplx- xai- nvapi- key- fw_ sq0atp- sq0csp-",
        r"(?=[\w-]{0,30}[0-9])[\w-]{22,}",
    ),
    ("private-key", "AGE-SECRET-KEY-", r"1[A-Z0-9]{20,}"),
    # how the base64 of a private key begins
    ("vault-token", "hvs. hvb. hvr.", r"[\w-]{20,}"),
    ("google-token", "ya29.", r"[\w-]{20,}"),
    ("password", "SCRAM-SHA-", r"(?:1|256|512)\$[\w./$=,+:-]{16,}"),
    (
        "private-key",
        "MII",
        r"[A-Za-z0-9+/]{3}(?:IBADANBgkqhkiG9w0BAQEFAASC|IBAAK[A-Z])[A-Za-z0-9+/=]*",
    ),
    (
        "private-key",
        "b3BlbnNzaC1rZXktdjE MC4CAQAwBQYDK2V MHcCAQEEI MIGHAgEAMBMG MIG2AgEAMBAG",
        r"[A-Za-z0-9+/=]{8,}",
    ),
    (
        "private-key",
        "LS0tLS1CRUdJTi",
        r"(?:BQUklWQVRF|BSU0EgUFJJVkFUR|BFQyBQUklWQVRF|BPUEVOU1NIIFBSSVZBVE|BFTkNSWVBURUQgUFJJVkFUR"
        r"|BEU0EgUFJJVkFUR)[A-Za-z0-9+/=]*",
    ),
)
# One start per run of such characters, so that a long run is scanned once. A JSON escape or
# a percent code right before it ends with a letter, but does not belong to the run.
_LEFT = r"(?:(?<![\w-])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"


class _Tokens:
    """Finds tokens by the rarest character of their prefix."""

    @cached_property
    def quick(self) -> re.Pattern[str]:
        return any_of(
            prefix for _, prefixes, _ in _TOKENS for prefix in prefixes.split()
        )

    @cached_property
    def whole(self) -> dict[str, list[tuple[str, int, str, re.Pattern[str]]]]:
        """For each such character: the prefix, where in it the character stands, the label, and the pattern."""
        found: dict[str, list[tuple[str, int, str, re.Pattern[str]]]] = {}
        for label, prefixes, rest in _TOKENS:
            for prefix in prefixes.split():
                at = rarest(prefix)
                pattern = re.compile(rf"{_LEFT}{re.escape(prefix)}{rest}", re.ASCII)
                found.setdefault(prefix[at], []).append((prefix, at, label, pattern))
        return found

    def spans(self, text: str) -> Iterator[Span]:
        at = 0
        for begin, end in windows(text):
            at = max(at, begin)
            while found := self.quick.search(text, at, end):
                at = found.start() + 1
                for prefix, offset, label, pattern in self.whole[found[0][0]]:
                    start = at - 1 - offset
                    if text.startswith(prefix, start) and (
                        token := pattern.match(text, start)
                    ):
                        yield Span(start, token.end(), label)
                        at = token.end()
                        break


_tokens = _Tokens()

_OTHER_TOKENS: tuple[Shape, ...] = (
    Shape(".atlasv1.", r"\.atlasv1\.", r"[A-Za-z0-9]{10,20}\.atlasv1\.[\w-]{30,}", "token", begins=False),
    Shape("hooks.slack.com", r"hooks\.slack\.com/", r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/-]{8,}", "slack-webhook"),
    Shape("/api/webhooks/", "/api/webhooks/", r"(/api/webhooks/\d{5,30}/)[\w-]{10,}", "token"),
    Shape("/webhookb2/", "/webhookb2/", r"(/webhookb2/[\w@-]{10,120}/IncomingWebhook/)[\w/-]{10,}", "token"),
)  # fmt: skip
_TELEGRAM = re.compile(r":AA[\w-]{30,}")

# ------------------------------------------------------------------ private keys

_PEM_MARK = re.compile(
    r"-----? ?(?P<what>BEGIN|END) (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
)
_FARTHEST_END = 100_000  # characters from the beginning of a key to its end
_BREAK = re.compile(r"(?:\s|\\+[nrt]|[\"']\s{0,3}[+,]?\s{0,80}[\"'])+")
_ENDS_BODY = r"(?:…|\.\.\.)?(?=\s*(?:[\r\n]|\\+[nr]|\Z)|[\"'`,;)}\]<])"
_BODY = re.compile(
    r"(?:Proc-Type|DEK-Info|Version|Comment|Charset|Hash|MessageID): [^\n\\]{1,200}"
    r"|[A-Za-z0-9+/]{20,}={0,2}(?:…|\.\.\.)?"
    rf"|(?P<last>[A-Za-z0-9+/]{{1,19}}={{0,2}}){_ENDS_BODY}"
    rf"|[^\n\\]{{1,200}}?[\s:>|\]](?=[^\n]{{0,30}}[A-Z])[A-Za-z0-9+/]{{40,}}={{0,2}}{_ENDS_BODY}"  # behind a log's prefix
)
_IS_BASE64 = re.compile(r"[0-9+/=]|[a-z][A-Z]")


def _pem_spans(text: str) -> Iterator[Span]:
    """Yield private keys: from mark to mark, or what is left of one that was cut."""
    marks = list(_PEM_MARK.finditer(text))
    done = 0
    for number, found in enumerate(marks):
        if found.start() < done:
            continue
        following = marks[number + 1] if number + 1 < len(marks) else None
        if found["what"] == "END":
            start, end = _body_before(text, done, found.start()), found.end()
        elif (
            following
            and following["what"] == "END"
            and following.start() - found.end() < _FARTHEST_END
        ):
            start, end = found.start(), following.end()
        else:
            limit = following.start() if following else len(text)
            start, end = found.start(), _body_end(text, found.end(), limit)
        done = end
        yield Span(start, end, "private-key")


def _body_end(text: str, at: int, limit: int) -> int:
    """Return where the base64 of a key ends that has no end mark; each line may have a prefix of a log."""
    while at < limit:
        gap = _BREAK.match(text, at, limit)
        line = _BODY.match(text, gap.end(), limit) if gap else None
        if line is None:
            break
        if (
            line["last"]
            and line.end() < len(text)
            and not _IS_BASE64.search(line["last"])
        ):
            break
        at = line.end()
    return at


_BODY_BEFORE = re.compile(r"(?:^|[\s\"':>|\]])(?P<body>[A-Za-z0-9+/]{4,}={0,2})\s*\Z")
_LINE_BREAK = re.compile(r"\r?\n|\\{1,8}(?:r\\{0,8})?n")


def _body_before(text: str, start: int, mark: int) -> int:
    """Return where the base64 begins whose beginning mark was cut off; each line may have a prefix of a log."""
    begin = mark
    breaks = [
        found.span()
        for found in _LINE_BREAK.finditer(text, max(start, mark - 20_000), mark)
    ]
    ends = [(max(start, mark - 20_000), 0), *breaks]
    for number in range(len(ends) - 1, 0, -1):
        line_end, line_start = (
            ends[number][0],
            ends[number - 1][1] or ends[number - 1][0],
        )
        found = _BODY_BEFORE.search(text[max(line_start, line_end - 300) : line_end])
        if found is None or begin < mark and len(found["body"]) < 40:
            break
        begin = line_end - len(found[0]) + found.start("body") - found.start()
    return begin


# ------------------------------------------------------------------ addresses

_HOSTS = r"\d{1,5}(?:[/?#]|,\s?(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?(?=[,/?#:\s\"']|\Z))"
_URL = (
    rf"(://(?:{MARKER}|(?!{MARKER})[^\s/?#:@\"'<>,]){{0,200}}:)(?!{_HOSTS})"
    # The authority up to its last "@"; or, with a slash, a quote or a space in the password, up to the next "@".
    r"(?:(?:[^\s/?#@\"'<>]*@)+(?<!:@)"
    r"|(?!\s)(?:[^\s@/\"'<>]|/(?!/)|[\"'](?=[\w.])){1,300}@(?=[\w\[])"
    r"|(?!\d{1,5}[\s\"'])[^\s@/,\"'<>]{1,100} (?:[^\s@/,\"'<>]{1,60} ){0,2}[^\s@/,\"'<>]{1,60}@(?=[\w.-]{1,200}[:/]))"
)
_URL_TOKEN = r"(://)(?:[0-9a-f]{32,}|(?=[\w-]{0,80}[0-9])(?=[\w-]{0,80}[A-Z])(?=[\w-]{0,80}[a-z])[\w-]{32,})@"
_DSN = re.compile(r"@(?=(?:tcp|udp|unix)\d?\(|[\w.-]{1,200}:\d{2,5}\b(?!:))")
_DSN_USER = re.compile(
    r"(?:^|[^\w/:@.\[-])[\w.+-]{1,60}:(?P<password>[^\s@\"'/:]{1,100})\Z"
)
_JDBC = r"(:thin:[\w$]{1,40}/)[^\s@\"']{1,200}(?=@)"
_SQLPLUS = r"(sqlplus(?<!\wsqlplus)\s+(?:-\w\s+){0,3}[\w$]{1,40}/)[^\s@\"']{1,200}(?=@)"
_PARAMETERS = (  # names, and what a value is like
    ("sig signature hmac [xX]-[aA]mz-[sS]ignature [xX]-[gG]oog-[sS]ignature", r"(?=[\w%+/.~-]{8})"),
    ("code ticket assertion client_assertion SAMLResponse SAMLRequest id_token_hint jsessionid",
     r"(?=[\w%+/.~-]{16})(?=[\w%+/.~-]{0,500}[0-9])"),
)  # fmt: skip
_QUERY = "(=(?:%s))[\\w%%+/.~-]+=*" % "|".join(
    f"(?:{'|'.join(f'(?<=[?&;]{name}=)' for name in names.split())}){value}"
    for names, value in _PARAMETERS
)


_URL_SHAPE, _URL_TOKEN_SHAPE = re.compile(_URL), re.compile(_URL_TOKEN)


def _url(match: re.Match[str]) -> str:
    return f"{match[1]}{marker('url-password')}@"


def _dsn_spans(text: str) -> Iterator[Span]:
    """Yield the passwords before hosts with a port, without a scheme: app:…@db1:5432, root:…@tcp(db1)."""
    for found in _DSN.finditer(text):
        if text.endswith("]", 0, found.start()):  # hidden
            continue
        user = _DSN_USER.search(text[max(found.start() - 162, 0) : found.start()])
        if user is not None:
            yield Span(found.start() - len(user["password"]), found.start(), "password")


# ------------------------------------------------------------------ headers

_TO_VALUE = r"\\{0,8}[\"']?[ \t]{0,4}[:=][ \t]{0,4}\\{0,8}[\"']?"
_NO_SECRET = (
    r"(?!(?:null|none|realm|error|token|header|is|was|not|missing|invalid|expired|required|failed|failure|denied|auth\w*|scheme|for"
    r"|type|\$\d|%s|\*{3,}|x{4,}|<[\w -]{1,40}>|\$\{|\$\(|\{)(?![\w+/-])"
    r"|\*{3,}|\$\{|\$\(|\{\{|<[\w -]{1,40}>)"
)
_AUTHORIZATION = (
    rf"((?i:authorization){_TO_VALUE})(?i:"
    rf"((?:bearer|basic|token|apikey|negotiate|ntlm|ssws|splunk|key|genie\s?key)[ \t=]{{1,4}}){_NO_SECRET}[^\s\"'\\,;]+"
    r"|((?:digest|aws4-hmac-sha256|hawk|oauth|signature|sharedaccesssignature|sharedkey)[ \t]{1,4})[^\r\n\"'\\]+(?:\\?\"[^\r\n\"'\\]+\\?\"[^\r\n\"'\\]*)*"
    r"|(?=[\w.~+/-]{0,200}[0-9])[\w.~+/-]{12,}={0,3})"
)
_BEARER = (
    r"([bB](?<![\w-].)(?i:earer)[ \t]{1,4})(?=[\w.~+/-]{0,60}[0-9])[\w.~+/-]{8,}={0,3}"
)
_BASIC = r"([bB](?<![\w-].)(?i:asic)[ \t]{1,4})[A-Za-z0-9+/_-]{6,}={0,3}"
_AUTH = r"(auth(?:(?<![\w-]auth)|(?<=[^\w-]_auth)|(?<=\n_auth)|(?<=\A_auth))\\{0,8}[\"']?\s{0,3}[:=]\s{0,3}\\{0,8}[\"']?)[A-Za-z0-9+/_-]{6,}={0,3}"
_COOKIE = rf"((?i:cookie){_TO_VALUE})(?=[\w.-]{{1,80}}=)[^\r\n\"'\\]+"
_SESSIONS = (
    "JSESSIONID PHPSESSID ASP.NET_SessionId connect.sid sessionid _session".split()
)


def _is_basic(match: re.Match[str]) -> bool:
    """Return whether what is behind the first group decodes to user:password; "Basic authentication failed" does not."""
    token = match[0][len(match[1]) :].rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return b":" in base64.b64decode(token + "=" * (-len(token) % 4))
    except binascii.Error:
        return False


def _basic(match: re.Match[str]) -> str:
    return match[1] + marker("authorization") if _is_basic(match) else match[0]


# ------------------------------------------------------------------ hashes, files, commands

_HASHES = tuple(  # each begins with one character, which lets the search skip ahead
    map(
        re.compile,
        (
            r"\$(?<![\w$]\$)(?:1|2[abxy]?|5|6|7|y|gy|apr1|argon2(?:id|i|d)|scrypt|s0|pbkdf2[\w-]{0,10}|bcrypt[\w-]{0,10})\$[\w./$=,+-]{8,}",
            r"\{(?:SSHA|SHA|SMD5|MD5|CRYPT)\d{0,3}\}[\w./$+=-]{8,}",
            r"\*(?<![\w*]\*)[0-9A-F]{40}\b",
            r"md5(?<![\w/]md5)[0-9a-f]{32}(?![0-9a-f])",
        ),
    )
)
_PGPASS = re.compile(
    r":(?:(?P<usual>54\d\d|6432)|\d{3,5}|\*):(?:[\w*.-]|\\.){1,63}:(?:[\w*.@-]|\\.){1,63}:(?P<password>[^\s\"']+)(?P<ends>[ \t]*(?:\r?\n|\Z))?"
)


def _pgpass_spans(text: str) -> Iterator[Span]:
    """Yield the passwords of host:port:database:user:password, if it is a whole line or the port is usual."""
    for found in _PGPASS.finditer(text):
        line = text.rfind("\n", max(found.start() - 200, 0), found.start()) + 1
        host = text[max(line, found.start() - 200) : found.start()]
        whole = (
            found["ends"] is not None
            and re.fullmatch(r"[\w.*-]+|/[\w./-]+", host)
            and not re.fullmatch(r"[0-9a-fA-F]{1,4}", host)
        )
        usual = found["usual"] or found[0].startswith(":*:*:")
        if whole or usual and re.search(r"(?:^|[^\w.:/-])[\w.*-]+\Z", host):
            yield Span(*found.span("password"), "password")


_PARAMETER = r"(\$\d{1,4} = [eE]?')(?=[^'\n]|'')([^'\n]*(?:''[^'\n]*)*)"
_DULL_PARAMETER = re.compile(
    r"-?\d{1,9}(?:\.\d{1,9})?|\d{4}-\d\d-\d\d(?:[ T][\d:.+-]+Z?)?|[tf]|true|false"
    r"|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
)


def _parameter(match: re.Match[str]) -> str:
    """Hide a parameter of a statement, but for numbers, times and ids: nothing says what it is for."""
    if _DULL_PARAMETER.fullmatch(match[2]) or IS_MARKER.fullmatch(match[2]):
        return match[0]
    return match[1] + marker("secret")


_JWK = r"([\"'](?:d|p|q|dp|dq|qi|k)\\{0,8}[\"']\s{0,3}:\s{0,3}\\{0,8}[\"'])[\w-]{16,}"
# ------------------------------------------------------------------ all of them

_HINT_TO_VALUE = r"\\{0,8}[\"']?[ \t]{0,4}[:=][ \t]{0,4}\\{0,8}[\"']?"
_SHOWN = unless_hidden(r"\s\"'\\,;", "", AUTHORIZATION_MARKER)
_SHOWN_LINE = unless_hidden(r"\r\n\"'\\", "", AUTHORIZATION_MARKER)
_HINT_AUTHORIZATION = (
    rf"(?:[\w.~+/\-{HIGH}]{{12}}"
    rf"|(?i:bearer|basic|token|apikey|negotiate|ntlm|ssws|splunk|key|genie{SPACE}?key)[ \t=]{{1,4}}{_SHOWN}"
    rf"|(?i:digest|aws4-hmac-sha256|hawk|oauth|signature|sharedaccesssignature|sharedkey)[ \t]{{1,4}}{_SHOWN_LINE})"
)

_SHAPES: tuple[Shape, ...] = (
    *_OTHER_TOKENS,
    Shape(":thin:", ":thin:", _JDBC, "password"),
    Shape("sqlplus", f"sqlplus{SPACE}", _SQLPLUS, "password"),
    Shape("authorization", rf"(?i:authorization){_HINT_TO_VALUE}{_HINT_AUTHORIZATION}", _AUTHORIZATION, "authorization"),
    Shape("bearer", rf"[bB](?i:earer)[ \t]{{1,4}}[\w.~+/\-{HIGH}]{{8}}", _BEARER, "authorization"),
    Shape("basic", r"[bB](?i:asic)[ \t]{1,4}[A-Za-z0-9+/_-]{6}", _BASIC, "authorization", is_secret=_is_basic),
    Shape("cookie", rf"(?i:cookie){_HINT_TO_VALUE}[\w.\-{HIGH}]+=", _COOKIE, "cookie"),
    *(Shape(name.lower(), rf"{re.escape(name)}=[\w%.!+/:\-{HIGH}]{{12}}", rf"({re.escape(name)}=)[\w%.!+/:-]{{12,}}", "cookie")
      for name in _SESSIONS),
    Shape("\"kty", "(?i)\"kty", _JWK, "private-key", begins=False),
    Shape("'kty", "(?i)'kty", _JWK, "private-key", begins=False),
)  # fmt: skip
_AUTH_SHAPE = re.compile(_AUTH)
_HINT_AUTH = (
    rf"auth\\{{0,8}}[\"']?{SPACE}*[:=]{SPACE}*\\{{0,8}}[\"']?[A-Za-z0-9+/_-]{{6}}"
)
# A token; or a password of one word or a few, which is more than a marker.
_FURTHER = r"(?:[^\s@]*|[^\s@/,\"'<>]*(?: [^\s@/,\"'<>]*){1,3})@"
_HINT_URL = (
    rf"://(?:[\w\-{HIGH}]{{32}}[\w\-{HIGH}]*@|[^\s/?#:@\"'<>,]*:"
    rf"(?:[^\s@{MARKERS}]{_FURTHER}|[{MARKERS}](?:[^@]{_FURTHER}|@[^\s/?#@\"'<>]*@)))"
)
_HINT_QUERY = "|".join(
    rf"[?&;](?:{'|'.join(names.split())})=[\w%+/.~\-{HIGH}]{{8}}"
    for names, _ in _PARAMETERS
)
_HINT_HASH = (
    rf"\$(?:1|2[abxy]?|5|6|7|y|gy|apr1|argon2(?:id|i|d)|scrypt|s0|(?:pbkdf2|bcrypt)[\w\-{HIGH}]*)\$[\w./$=,+\-{HIGH}]{{8}}"
    rf"|\{{(?:SSHA|SHA|SMD5|MD5|CRYPT)[0-9{HIGH}]*\}}[\w./$+=\-{HIGH}]{{8}}"
    r"|\*[0-9A-F]{40}|md5[0-9a-f]{32}"
)
_HINT_PGPASS = rf":(?:[0-9{HIGH}]{{3,}}|\*):(?:[\w*.\-{HIGH}]|\\[^\n])+:(?:[\w*.@\-{HIGH}]|\\[^\n])+:[^\s\"']"
_HINT_DSN = (
    rf":[^\s@\"'/:]*[^\s@\"'/:\]{MARKERS}]@(?:tcp|udp|unix|[\w.\-{HIGH}]+:[0-9{HIGH}])"
)


def _hint_tokens() -> str:
    """Return the tokens as one pattern, without what RE2 does not know: what is around them, and what is ahead."""
    return rf"(?:^|[^\w-]|\\[nrt]|%[0-9A-Fa-f]{{2}})(?:{'|'.join(_token_hints())})"


def _token_hints() -> Iterator[str]:
    for _, prefixes, rest in _TOKENS:
        some = "|".join(map(re.escape, prefixes.split()))
        yield f"(?:{some}){re.sub(r'[(][?][=!][^()]*[)]', '', rest)}"


_QUERY_SHAPE, _PARAMETER_SHAPE = re.compile(_QUERY), re.compile(_PARAMETER)


def _hide_urls(text: str) -> str:
    return _URL_TOKEN_SHAPE.sub(_url, _URL_SHAPE.sub(_url, text))


def _hide_hashes(text: str) -> str:
    for pattern in _HASHES:
        text = pattern.sub(marker("password"), text)
    return text


def hide_words(text: str, hints: Set[str]) -> str:
    """Return the text without what stands behind the words of commands, headers and cookies."""
    lower = lowered(text)
    spans = [*word_spans(text, lower, hints)]
    for shape in _SHAPES:
        if shape.word in hints:
            spans += shape.spans(text, lower)
    return hide(text, without_overlaps(spans))


RULES: tuple[tuple[str, str, Callable[[str], str]], ...] = (  # in their order: name, hint, rule
    ("pem", "PRIVATE KEY", lambda text: hide(text, _pem_spans(text))),
    ("url", _HINT_URL, _hide_urls),
    ("token", _hint_tokens(), lambda text: hide(text, _tokens.spans(text))),
    ("hash", _HINT_HASH, _hide_hashes),
    ("auth", _HINT_AUTH, lambda text: _AUTH_SHAPE.sub(_basic, text)),
    ("query", _HINT_QUERY, lambda text: _QUERY_SHAPE.sub(_behind("token"), text)),
    ("parameter", rf"\$[0-9{HIGH}]+ = [eE]?'", lambda text: _PARAMETER_SHAPE.sub(_parameter, text)),
    ("pgpass", _HINT_PGPASS, lambda text: hide(text, _pgpass_spans(text))),
    ("dsn", _HINT_DSN, lambda text: hide(text, _dsn_spans(text))),
    ("telegram", rf"[0-9]{{8}}:AA[\w\-{HIGH}]{{30}}", lambda text: hide(text, _telegram_spans(text))),
)  # fmt: skip
WORD_HINTS = {**WORDS_BEFORE, **{shape.word: shape.hint for shape in _SHAPES}}


def _telegram_spans(text: str) -> Iterator[Span]:
    for found in _TELEGRAM.finditer(text):
        digits = re.search(
            r"(?<![0-9])[0-9]{8,10}\Z", text[max(found.start() - 11, 0) : found.start()]
        )
        if digits is not None:
            yield Span(found.start() - len(digits[0]), found.end(), "token")
