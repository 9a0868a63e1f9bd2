"""Which names hold secrets, and which values beside such a name are no secrets."""

from __future__ import annotations

import re
from functools import lru_cache

# ------------------------------------------------------------------ names

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+")
# A word behind the one that names the secret and that does not change what the value is.
_NEUTRAL = frozenset(
    "hash hashed digest value val string str text plain plaintext clear cleartext old new current"
    " previous prod production dev stage staging test primary secondary backup base b64 base64 enc"
    " encrypted raw data pem material confirm confirmation repeat".split()
)
# A word behind it after which the value is about the secret: `DB_PASSWORD_FILE`.
_ABOUT = frozenset(
    "age alg algorithm algo arn at attempts audience bucket callback class command complexity count"
    " created date days dir directory enabled encryption endpoint env error exp expired expires expiry"
    " expiration file filename format field group header hint hours id ids in interval issuer key label"
    " len length lifetime limit manager max method min minutes mode mount ms name namespace param path"
    " pattern policy prefix provider ref refresh regex rejected required reset role rotation scope"
    " seconds size source state status store strength suffix time timeout total ttl type uri url usage"
    " used user username validity var version volume".split()
)
BESIDE_KEY = (  # `api_key` and `signingKey` are secrets, `primary_key` is not
    "access account admin aes api app application auth cipher client consumer cookie crypto decryption deploy"
    " encryption functions hmac ingest ingestion integration jwt license master preshared private psk"
    " secret security session shared sharedaccess signing ssh storage subscription tls webhook wg"
    " wireguard"
).replace(" ", "|")
_SECRET_NAME = re.compile(
    r"(?P<password>pass(?:word|wd|phrase|wort|code|words)|passe|pwd|contrasena|wachtwoord|kennwort|senha"
    r"|heslo|haslo|парол[ьяю]|密[码碼]|パスワード|비밀번호"
    r"|(?:^|_)(?:pass|pw|psk|otp|mdp|parola)"
    r"|(?:require|ssh|store|key|trust|become|db|user|root|admin|sudo|vault|smtp|ftp|mail|ldap|bind|mysql"
    r"|redis|my)pass|(?:bind|root|db|admin|user|ldap|my)pw|masterauth)$"
    r"|(?P<secret>secret(?:_?access)?(?:_?key)?|credentials?|(?:^|_)creds?)$"
    r"|(?P<token>token)$"
    rf"|(?:(?:^|_)(?:{BESIDE_KEY}))(?P<key>_?keys?)$"
)
_PAGES = frozenset(
    "next page prev previous continue continuation sync cancel cancellation fencing idempotency resume shard"
    " unexpected".split()
)
_LABELS = {"password": "password", "secret": "secret", "token": "token"}


@lru_cache(maxsize=8192)
def label_of(name: str) -> str | None:
    """Return the label of the secret that a setting, column or member of this name holds, or None.

    A name tells by how it ends: `password_encryption`, `max_tokens` and `secretName` hold no secret.
    """
    words = [word.lower() for word in _WORDS.findall(name.replace("ñ", "n"))]
    while words and (words[-1] in _NEUTRAL or words[-1].isdigit()):
        words.pop()
    label = _label(words)
    if label or not ("_" in name and name.isupper()):
        return label
    # In the environment the secret often stands first: DB_PASSWORD_ORDERS.
    if _ABOUT.intersection(words[-1:]):
        return None
    ends = (_label(words[:end]) for end in range(1, len(words)))
    return next((label for label in ends if label in _LABELS), None)


def _label(words: list[str]) -> str | None:
    found = _SECRET_NAME.search("_".join(words))
    if found is None:
        return None
    if found["token"] and _PAGES.intersection(words[-2:-1]):
        return None
    return _LABELS.get(found.lastgroup or "", "api-key")


# ------------------------------------------------------------------ values

_ORDINARY_WORDS = (
    "null none nil true false yes no on off undefined unset empty missing invalid expired required rejected"
    " denied unknown unexpected incorrect wrong failed failure changed authentication not is was are in at"
    " near and or for of from by to the an? ok n/?a default valid found used hidden masked redacted filtered"
    " removed omitted protected encrypted plain(?:text)? optional mandatory disabled enabled"
    " scram-sha-256 md5 sha256 bcrypt argon2id? str string text varchar bytes int integer bool boolean char"
    " uuid bytea jsonb? object any inherit files compat systemd sss ldap chauthtok bearer basic opaque"
    " reads? writes? list create delete get update manage refreshed rotated cancelled canceled created deleted updated revoked"
    " accepted await async new lambda function verified synced renewed loaded issued expires mismatch error ident eof newline identifier"
).split()
_PLAIN_WORDS = frozenset(_ORDINARY_WORDS)
_SECRET_WORD = r"(?:pass(?:word|wd|phrase)|pwd|token|secret|credentials?|key)"
_ORDINARY = re.compile(
    rf"(?i:(?:{'|'.join(_ORDINARY_WORDS)}))[,;.:!?)}}\]\"']{{0,3}}"
    r"|[\W_]*|[xX]{3,}|\\?"
    # what another program fills in
    r"|\$(?:\d{1,3}|[A-Z_][A-Z0-9_]*)[,;)}\"']{0,3}|%\(?\w{0,40}\)?[sdvqrx][,;)\"']{0,3}|:[a-z_]{1,40}[,;)]{0,2}"
    rf"|[$@][a-z_]*{_SECRET_WORD}\w{{0,20}}[,;)]{{0,3}}"
    r"|\{\w{0,40}\}|@[pP]\d{1,3}"
    # where it is kept
    r"|(?:file:)?(?:[.~]|//)?/(?:etc|run|var|home|root|opt|usr|srv|tmp|mnt|data|secrets?|app|vault|proc|dev|config"
    r"|certs?|keys?|ssl|tls)/[\w./@+-]+[,;:)]?"
    r"|[\w./-]{1,200}\.(?:key|pem|crt|cert|p12|pfx|jks|json|ya?ml|txt|conf|env|gpg|age|enc|secret)[,;:)]?"
    r"|(?:vault|arn|op|ssm|sops|secretref|keyring|env|awskms|gcpkms|projects|secretsmanager|pass)(?::|/)"
    r"[\w:/.@#+-]{3,}|@?Microsoft\.KeyVault.*"
    r"|[\w-]{1,60}:/(?:etc|run|usr|var)/[\w./@-]+"
    # code that names it
    rf"|[a-z]+(?:_[a-z]+)*_{_SECRET_WORD}[:,;)}}\]]{{0,3}}"
    r"|(?:self|this|config|cfg|settings|conf|env|os|process|args|opts|options|params|request|req|props|ctx|row"
    r"|user|data|excluded|EXCLUDED|new|old|NEW|OLD|var|local|module|each|values|Values|System|Environment|[a-z])"
    rf"\.[\w.]+(?:[(\[].*)?|[A-Za-z_]{{2,}}(?:\.\w+)*(?:\(|\[[\"'\]]).*|\w{{1,30}}\.{_SECRET_WORD}\w{{0,10}}[,;)]{{0,3}}"
    # amounts
    r"|\d{1,3}|\d+(?:\.\d+)?(?:[smhd]|ms|us|ns|%|[kKMG]i?B)[,;)]?",
    re.ASCII | re.DOTALL,
)
_PLACEHOLDER = re.compile(
    r"<[\w][\w .,:'\"/-]{0,100}>|\[(?i:redacted|filtered|hidden|masked|removed|secret|omitted|protected)[^\]\n:]{0,40}\]"
    r"|\((?i:redacted|filtered|hidden|masked|removed|none|unset|not set|set|null|empty|sensitive|known after)[^)\n]{0,40}\)"
    r"|\{\{|\$\{|\$\(|%\(|\{%|!Ref\b|!Sub\b|!GetAtt\b|!secret\b|!reference\b|secretKeyRef|valueFrom"
)
_BEGIN_PLACEHOLDER = frozenset("<[({$%!sv")
_LONGEST_ORDINARY = 300


def is_placeholder(text: str, at: int) -> bool:
    """Return whether what stands for a value is filled in, or was taken out, by another program."""
    return text[at : at + 1] in _BEGIN_PLACEHOLDER and bool(
        _PLACEHOLDER.match(text, at)
    )


def is_ordinary(value: str, name: str) -> bool:
    """Return whether a value beside the name of a secret is none itself: null, a path, a number, code."""
    if len(value) > _LONGEST_ORDINARY:
        return False
    if value.isalnum() and not value[0].isdigit():
        lower = value.lower()
        return (
            lower in _PLAIN_WORDS
            or not lower.strip("x")
            or lower == name.lower().rpartition(".")[2]
        )
    if _ORDINARY.fullmatch(value) or value.lower() == name.lower().rpartition(".")[2]:
        return True
    return value.isdigit() and len(value) < 10 and label_of(name) != "password"


_ALGORITHM = re.compile(
    r"(?i:bf|md5|des|xdes|sha-?\d{1,3}|aes(?:-\w{1,20}(?:/\w{1,20}:?\w{0,20})?)?|aes-cbc/pad:\w+|hex|base64|escape|utf-?8|[\w-]{1,30}-algo=\w+|)"
)


def is_algorithm(literal: str) -> bool:
    """Return whether a literal names an algorithm or encoding: 'sha256', 'bf', 'hex'."""
    return _ALGORITHM.fullmatch(literal) is not None


# ------------------------------------------------------------------ prose

_FUNCTION_WORDS = frozenset(
    "a about after again all already also an and any are as at be been before but by can cannot could did do"
    " does every for from had has have here if in into is it its least length long longer many may more most must"
    " my never new no not of on once one only or our please shall short should so some than that the their then"
    " there these they this those to too try until use was we were what when which while will with without"
    " would yet you your".split()
)
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[,.;:!?)\]]{0,3}")
_NOUN = re.compile(rf"(?i:{_SECRET_WORD}s?|authentication|authorization)")
_TECHNICAL = re.compile(
    r"(?i:(?:sha|md|aes|rsa|utf|base|x|oauth|http|tls|ssl|[hrep]s|ecdsa|ed|v|bcrypt|argon|pbkdf|ipv|scram-sha-)"
    r"-?\d+\w{0,4}|\d+(?:st|nd|rd|th)|\d[\d.,:/-]*[a-z%]{0,3})[,.;:!?)]{0,3}"
)


def is_word(value: str) -> bool:
    return _WORD.fullmatch(value) is not None


def is_sentence(value: str) -> bool:
    """Return whether a text of several words is one that a person reads: "must be longer"."""
    words = value[:_LONGEST_ORDINARY].split()
    return (
        len(words) > 1
        and all(_WORD.fullmatch(word) or _TECHNICAL.fullmatch(word) for word in words)
        and any(word.strip(",.;:!?").lower() in _FUNCTION_WORDS for word in words)
    )


def begins_sentence(value: str, rest: str, first_in_line: bool) -> bool:
    """Return whether a value without quotes is the first word of what a message says about the secret.

    Args:
        value: The word behind the colon.
        rest: The rest of the line.
        first_in_line: Whether the name begins the line, as a setting does.
    """
    words = rest.split()
    if not words or rest[0] in "\"')}]":
        ends = re.fullmatch(r"[a-z]{3,}(?:ed|ing)[.!]?", value)
        return bool(ends) and not first_in_line
    if "=" in words[0] or words[0].endswith(":") or not rest[0].isspace():
        return False
    if _NOUN.fullmatch(value):
        return True
    if _TECHNICAL.fullmatch(value):
        return bool(re.match(r"[A-Za-z(]", words[0]))
    if not _WORD.fullmatch(value):
        return False
    if not first_in_line:
        return True
    beginning = [word.strip(",.;:!?").lower() for word in (value, *words[:8])]
    return bool(_FUNCTION_WORDS.intersection(beginning))


_RANDOM = re.compile(
    r"(?=[^A-Za-z]*[A-Za-z])(?=[^0-9!@#$%^&*+?]*[0-9!@#$%^&*+?].)[^/\\:(=<]{6,}",
    re.DOTALL,
)


def looks_random(value: str) -> bool:
    """Return whether a word in a sentence looks like a password: letters with digits or signs in it."""
    return _RANDOM.fullmatch(value) is not None and not _TECHNICAL.fullmatch(value)
