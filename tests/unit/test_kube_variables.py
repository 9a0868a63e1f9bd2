"""Who wrote which variable of a pod, and what of that is a secret."""

from __future__ import annotations

import json

from midwatch.kube.pod.task import read_task
from midwatch.kube.pod.variables import sorted_variables
from midwatch.kube.rules import RESERVED_PREFIXES, RESERVED_VARIABLES
from midwatch.redaction import Redactor

REPOS = json.dumps([{"input": {"url": "https://git.example/shop.git"}}])
POD = {
    "PATH": "/bin",
    "HOME": "/home/midwatch",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "SESSION_NAME": "fix",
    "STATUS": "none",
    "REPOS_JSON": REPOS,
    "PROMPT": "Do it.",
    "ANTHROPIC_API_KEY": "",
}


def by_secret(**values: str) -> dict[str, str]:
    return {f"SESSION_SECRET_{name}": value for name, value in values.items()}


def test_no_key_of_a_secret_becomes_a_variable_of_the_runner() -> None:
    names = [*RESERVED_VARIABLES, *(f"{one}X" for one in RESERVED_PREFIXES)]
    allowed = {"GIT_TOKEN", "ANTHROPIC_API_KEY"}
    given = sorted_variables({**POD, **by_secret(**dict.fromkeys(names, "evil"))})
    assert {n for n, v in given.own.items() if v == "evil"} == allowed
    assert set(given.left_out) == set(names) - allowed
    assert "evil" not in given.of_the_program.values()
    assert given.of_git["PATH"] == "/bin"


def test_a_key_that_the_operator_wrote_stays() -> None:
    written = {**POD, "ANTHROPIC_API_KEY": "ours"}
    given = sorted_variables({**written, **by_secret(ANTHROPIC_API_KEY="theirs")})
    assert given.own["ANTHROPIC_API_KEY"] == "ours"


def test_the_program_gets_what_people_asked_for() -> None:
    asked = {"SESSION_VARIABLE_LANG": "de_DE.UTF-8", "SESSION_VARIABLE_A": "literal"}
    given = sorted_variables({**POD, **asked, **by_secret(A="secret", TERM="dumb")})
    wanted = {"TZ": "UTC", "LANG": "de_DE.UTF-8", "A": "literal", "TERM": "dumb"}
    assert given.of_the_program == wanted


def test_values_of_secrets_are_hidden_whatever_their_names() -> None:
    values = {"DATABASE_URL": "unlikely-w0rd", "SENTRY_DSN": "another 0ne"}
    secrets = by_secret(**values, TOGGLE="true", ANTHROPIC_API_KEY="sk-ant-0123456789")
    secrets |= by_secret(MODEL="left-out m0del")
    plain = {"SESSION_VARIABLE_REGION": "eu-central-1"}
    task = read_task(sorted_variables({**POD, **secrets, **plain}))
    text = "unlikely-w0rd another 0ne left-out m0del true eu-central-1"
    hidden = f"{' '.join(3 * ['[redacted:secret]'])} true eu-central-1"
    assert Redactor(task.secrets).text(text) == hidden
    assert "unlikely" not in repr(task)
