"""The hints of what is secret because of a name: the end of a name, and behind it something that separates it from a value."""

from __future__ import annotations

from midwatch.redaction.hints import HIGH, LETTER, SPACE, unless_hidden
from midwatch.redaction.names import BESIDE_KEY
from midwatch.redaction.pairs import IN_NETRC

_SOME_WORD = (
    "(?i:secret|cred|token|key|wachtwoord|contrase|kennwort|pass|parola|pw|psk)"
)
# The end of what names a secret: no word of small letters goes on there. A name of more than 8 characters counts as that of a setting.
_SHORT_CORE = "(?i:pass(?:word|wort|wd|code|e)?|pwd|pw|psk|otp|mdp|parola|kennwort|senha|heslo|haslo|secret|creds?|token)"
_LONG_CORE = (
    r"(?i:passwords|passphrase|passcodes|masterauth|contrasena|wachtwoord|secretaccess|secret(?:access)?key|credentials?)"
    rf"|(?i:contrase)ñ[aA]|(?i:{BESIDE_KEY})[_.\-{HIGH}]*(?i:keys?)"
)
_CORE = f"(?:{_SHORT_CORE}|{_LONG_CORE})"
_CORE_ABROAD = "(?:п|П)(?:а|А)(?:р|Р)(?:о|О)(?:л|Л)|密码|密碼|パスワード|비밀번호"
_NAME_END = rf"(?:[A-Z0-9_.\-{HIGH}][\w.\-{HIGH}]*)?"
_OPERATORS = "(?i:as|i?like|in|not|is|between|similar|distinct|to|values?|select|from|overriding)"
_VERBS = "has|was|set|reset|changed|updated|any|all"
_BARE_SHOWN = unless_hidden(r"\s,;&)}\]", but=' "')
_QUOTED_SHOWN = unless_hidden('"')
_CELL_BEHIND = rf"[,;\t]{SPACE}*[\"'`]?[A-Za-z_][\w.\-{HIGH}]*[\"'`]?[ \r]*[,;\t\n]"
_BEHIND_NAME_HINT = "|".join(
    (
        # a separator, and a value that is not hidden yet
        rf"(?:\\*[\"'])?[=:](?: ?{_BARE_SHOWN}| ?\"{_QUOTED_SHOWN}|  )",
        # other separators, SQL, columns
        r"\\*`|\\*[\"'][^=:}.\w/]|[\]~!|\t]|\\+(?:u00|\])|%(?:25)?3[dD]|%2[27]|&(?:quot|#)|<[^/]|>[^\w<]|>[eEnNuU]",
        r"[\f\v\x1c-\x1f]|\r[^\n]",
        rf",(?: ?\\*[\"']|[^()';]*\))|{_CELL_BEHIND}",
        rf"\)[\"`)\]]*{SPACE}*(?:[^\w\s.]|{_OPERATORS})",
        rf"\r?\n(?:\r?\n|{SPACE}*[^\w\s]|{SPACE}*{_OPERATORS})",
        # a space, and what is more than a word of a sentence
        rf" +(?:[^A-Za-z \-]|[A-Za-z\-]+(?:[^A-Za-z\-\s.,;:)]|[.,;:)]+[^\s.,;:)])|(?:{_VERBS}|{_OPERATORS})[ \t\n])",
    )
)
# A line that begins with the name of a setting, and ends behind a word.
_BEHIND_SETTING = r" +(?:[^a-z ]|[a-z]+(?:[^a-z ]|\z)|[a-z]+ +(?:[^\w ]|\z))"
_SETTING = rf"(?:[\w.\-{HIGH}]{_CORE}{_NAME_END}|{_LONG_CORE}|{_CORE}[A-Z0-9_.\-{HIGH}][\w.\-{HIGH}]*)"
_NETRC_WORDS = "|".join(IN_NETRC)
_NAME_HINT = "|".join(
    (
        rf"{_CORE}{_NAME_END}(?:{_BEHIND_NAME_HINT})",
        _SETTING + _BEHIND_SETTING,
        rf"-[\w.\-{HIGH}]*{_CORE}{_NAME_END}[ \t]",  # an option
        rf"(?:{_NETRC_WORDS})[^\n]*(?:\n[^\n]*)?{_CORE}{_NAME_END}[ \t]",
        rf"(?:[,;\t]{SPACE}*[\"'`]?[\w.\-{HIGH}]*|\|[^\n]*){_CORE}{_NAME_END}[\"'`]? *\r?\n",  # the last column
        rf"{_SOME_WORD}[\w\-{HIGH}]{{40}}",  # a name that is cut
        rf"{_CORE}[\w.\-{HIGH}]*：|{_CORE_ABROAD}",
    )
)
NAME_HINTS = {
    "name": _NAME_HINT,
    "core": rf"{_CORE}(?:[^a-z]|\z)|{_CORE_ABROAD}",
    "value": r"alue(?:[\"'=:\\]| [=:])",
    "tag": "</",
    "abroad": rf"(?i:senha|heslo|haslo)|{_CORE_ABROAD}|密",
    "literal": rf"'\)?{SPACE}*(?:::{LETTER}+{SPACE}?)?(?:[aA][sS]{SPACE}|=|<>|~){SPACE}*[\w.\"{HIGH}]*{_SOME_WORD}",
    "into": rf"(?i:into){SPACE}+[\w.\"`{HIGH}]*{_SOME_WORD}{LETTER}*[\w\-]*[\"`]?{SPACE}+(?i:values)",
}
