"""The API server and the operator refuse the same resources.

The schema is applied here as the API server does: nulls and unknown fields go, defaults come, JSON Schema, then
the rules in CEL. What this cannot show is the server's own estimate of what the rules cost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.kube.crd import crd
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import (
    CHANGEABLE,
    Environment,
    LlmSettings,
    Part,
    Repo,
    SecretKey,
    Spec,
    read_resource,
)
from midwatch.kube.rules import MAX_NAME, MAX_PROMPT_BYTES, MAX_REPOS
from midwatch.kube.status import Status
from tests.cluster.schemas import FUNCTIONS

SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
URL = "https://git.example/team/app.git"

# ------------------------------------------------------------------ the API server


@lru_cache
def program(expression: str) -> cel.Program:
    return cel.compile(expression)


def holds(expression: str, **variables: Any) -> bool:
    context = cel.Context(variables, FUNCTIONS)
    return program(expression).execute(context) is True


def like_re2(_: Any, pattern: str, value: Any, __: Any) -> Iterator[Any]:
    if isinstance(value, str) and not holds(
        "value.matches(pattern)", value=value, pattern=pattern
    ):
        yield jsonschema.ValidationError(f"{value[:50]!r} does not match {pattern}")


Validator = jsonschema.validators.extend(
    jsonschema.Draft4Validator, {"pattern": like_re2}
)


def completed(schema: Any, value: Any) -> Any:
    """Without nulls and unknown fields, with defaults."""
    if isinstance(value, list):
        return [completed(schema.get("items", {}), one) for one in value]
    if not isinstance(value, dict):
        return value
    if "additionalProperties" in schema:
        return {k: v for k, v in value.items() if v is not None}
    if "properties" not in schema:
        return value
    known = schema["properties"]
    kept = {k: v for k, v in value.items() if k in known and v is not None}
    for name, part in known.items():
        if "default" in part and name not in kept:
            kept[name] = copy.deepcopy(part["default"])
    return {name: completed(known[name], part) for name, part in kept.items()}


def broken(schema: Any, value: Any, old: Any, path: str = "") -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"]:
            if not holds(rule["rule"], self=value):
                yield rule["message"]
        elif old is not None and not holds(rule["rule"], self=value, oldSelf=old):
            yield rule["message"]
    if isinstance(value, list):
        for one in value:
            yield from broken(schema["items"], one, None)
    elif isinstance(value, dict):
        for name, one in value.items():
            part = schema.get("properties", {}).get(name)
            if part is not None:
                before = old.get(name) if isinstance(old, dict) else None
                yield from broken(part, one, before)
            elif "additionalProperties" in schema:
                yield from broken(schema["additionalProperties"], one, None)


def refusals(document: Any, old: Any = None) -> list[str]:
    whole = completed(SCHEMA, document)
    wrong = [error.message for error in Validator(SCHEMA).iter_errors(whole)]
    if wrong:
        return wrong
    return list(broken(SCHEMA, whole, completed(SCHEMA, old) if old else None))


def resource(spec: Any = None, name: str = "fix-login", **more: Any) -> dict[str, Any]:
    base = {"prompt": "Fix it.", "repos": [{"input": {"url": URL}}]}
    return {
        "apiVersion": "midwatch.dev/v1alpha1",
        "kind": "AgenticSession",
        "metadata": {"name": name, "namespace": "team"},
        "spec": {**base, **(spec or {}), **more},
    }


def refused_by_operator(document: Any) -> bool:
    try:
        read_resource(document)
    except SpecRefused:
        return True
    return False


# ------------------------------------------------------------------ the definition itself


def test_it_is_a_definition_that_kubernetes_has() -> None:
    kubernetes_validate.validate(crd(), "1.37", strict=True)
    version = crd()["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    columns = {column["name"]: column for column in version["additionalPrinterColumns"]}
    assert list(columns) == ["Phase", "Model", "Turns", "Cost", "Age", "Message"]
    assert columns["Message"]["priority"] == 1


def parts(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from parts(part, f"{path}.{name}")
    if "items" in schema:
        yield from parts(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from parts(schema["additionalProperties"], f"{path}{{}}")


def test_every_field_has_a_bound_and_says_what_it_is() -> None:
    own = [(p, s) for p, s in parts(SCHEMA) if p.startswith((".spec", ".status"))]
    for path, part in own:
        if not path.endswith("{}"):
            assert part.get("description") or part.get("enum"), path
        bound = {"string": "maxLength", "array": "maxItems"}.get(part.get("type"))
        if bound and "enum" not in part and part.get("format") != "date-time":
            assert bound in part, path
        if "additionalProperties" in part:
            assert "maxProperties" in part, path


NOT_STRUCTURAL = {"$ref", "$defs", "title", "const", "propertyNames", "oneOf", "allOf"}


def test_nothing_of_json_schema_is_left_that_a_structural_schema_cannot_have() -> None:
    for path, part in parts(SCHEMA):
        assert not NOT_STRUCTURAL & set(part), path
        assert part.get("default", ...) is not None, path
        assert isinstance(part.get("exclusiveMinimum", True), bool), path
        number = part.get("x-kubernetes-int-or-string") is True
        assert ("type" in part) is not number and ("anyOf" in part) is number, path


def fields(model: type[Part]) -> dict[str, Any]:
    return {f.alias or name: f for name, f in model.model_fields.items()}


def test_the_schema_has_the_fields_and_defaults_of_the_operator() -> None:
    schema = SCHEMA["properties"]["spec"]["properties"]
    assert set(schema) == set(fields(Spec))
    read = read_resource(resource()).spec
    given = read_resource(completed(SCHEMA, resource())).spec
    assert given == read
    models = {
        "llmSettings": LlmSettings,
        "environment": Environment,
        "apiKeySecret": SecretKey,
    }
    for name, model in models.items():
        assert set(schema[name]["properties"]) == set(fields(model))
    assert set(SCHEMA["properties"]["status"]["properties"]) == set(fields(Status))
    assert set(schema["repos"]["items"]["properties"]) == set(fields(Repo))


# ------------------------------------------------------------------ what is refused

REPOS = {
    "none": [],
    "not a list": {"input": {"url": URL}},
    "an option": [{"input": {"url": "--upload-pack=sh"}}],
    "a helper": [{"input": {"url": "ext::sh -c x"}}],
    "a blank": [{"input": {"url": "https://git.example/a b"}}],
    "a line feed at the end": [{"input": {"url": URL + "\n"}}],
    "a password": [{"input": {"url": "https://me:secret@git.example/a"}}],
    "a password after an address": [
        {"input": {"url": "https://me@git.example:secret@git.example/a"}}
    ],
    "a password with a slash": [{"input": {"url": "https://me:sec/ret@git.example/a"}}],
    "a password for ssh": [{"input": {"url": "ssh://me@x:secret@git.example/a"}}],
    "a password without a scheme": [{"input": {"url": "me:secret@git.example:a"}}],
    "a password before a host": [{"input": {"url": "me:secret@git.example/a/b"}}],
    "a password after a slash": [{"input": {"url": "https:/me:secret@git.example/a"}}],
    "a token as the user": [
        {"input": {"url": "https://ghp_abcdefghij0123456789@github.com/a/b"}}
    ],
    "a long token as the user": [
        {"input": {"url": f"https://{52 * 'a'}@dev.azure.com/o/p/_git/r"}}
    ],
    "another protocol": [{"input": {"url": "ftp://git.example/a"}}],
    "an option as host": [{"input": {"url": "ssh://-oProxyCommand=x/a"}}],
    "an option as path": [{"input": {"url": "git@git.example:-x"}}],
    "no url": [{"input": {"branch": "main"}}],
    "an option as branch": [{"input": {"url": URL, "branch": "--force"}}],
    "a branch git refuses": [{"input": {"url": URL, "branch": "a..b"}}],
    "an empty output branch": [{"input": {"url": URL}, "output": {"branch": ""}}],
    "an odd output": [{"input": {"url": URL}, "output": {"url": "-x"}}],
    "a path as name": [{"name": "../x", "input": {"url": URL}}],
    "a hidden name": [{"name": ".git", "input": {"url": URL}}],
    "a device": [{"name": "Com1.x", "input": {"url": URL}}],
    "equal names": [
        {"name": "App", "input": {"url": URL}},
        {"name": "app", "input": {"url": URL + "2"}},
    ],
    "one twice": [{"input": {"url": URL}}, {"input": {"url": URL}}],
    "too many": [{"input": {"url": f"{URL}{i}"}} for i in range(MAX_REPOS + 1)],
}
# One of each kind, written down here again: the list in the code must not lose one unseen.
STEERING = (
    ("NODE_TLS_REJECT_UNAUTHORIZED", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE")
    + ("SSLKEYLOGFILE", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "no_proxy")
    + ("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "ANTHROPIC_BASE_URL")
    + ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS", "AWS_BEARER_TOKEN_BEDROCK")
    + ("CLAUDE_CONFIG_DIR", "HOME", "PATH", "TMPDIR", "XDG_CONFIG_HOME")
    + ("BASH_ENV", "ENV", "SHELL", "ZDOTDIR", "PROMPT_COMMAND")
    + ("LD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "NODE_OPTIONS", "BUN_OPTIONS")
    + ("PYTHONPATH", "PERL5OPT", "GCONV_PATH", "OPENSSL_CONF")
    + ("GIT_SSH_COMMAND", "GIT_SSL_NO_VERIFY", "GIT_CONFIG_COUNT", "GIT_EXEC_PATH")
    + ("SSH_ASKPASS", "MIDWATCH_SESSIONS__WALL")
    + ("LOCALDOMAIN", "HOSTALIASES", "SSH_SK_PROVIDER", "SSH_PKCS11_HELPER")
    + ("RIPGREP_CONFIG_PATH", "GNUTLS_SYSTEM_PRIORITY_FILE")
)
SPECS: dict[str, dict[str, Any]] = {
    **{f"repos: {why}": {"repos": value} for why, value in REPOS.items()},
    "no prompt": {"prompt": " \n"},
    "a NUL": {"prompt": "a\0"},
    "too long a prompt": {"prompt": "ü" * (MAX_PROMPT_BYTES // 2 + 1)},
    "a prompt that is a number": {"prompt": 3},
    "no such main repository": {"mainRepoIndex": 1},
    "a negative index": {"mainRepoIndex": -1},
    "no time": {"timeout": 0},
    "time as a text": {"timeout": "3600"},
    "more than a week": {"idleTimeout": 604_801},
    "a truth that is a text": {"interactive": "yes"},
    "no turns": {"llmSettings": {"maxTurns": 0}},
    "no money": {"llmSettings": {"maxBudgetUsd": 0}},
    "an unknown effort": {"llmSettings": {"effort": "some"}},
    "a model that is an option": {"llmSettings": {"model": "--x"}},
    "a reserved variable": {"environment": {"variables": {"PROMPT": "x"}}},
    "a key in the open": {"environment": {"variables": {"ANTHROPIC_API_KEY": "x"}}},
    "a git token in the open": {"environment": {"variables": {"GIT_TOKEN": "x"}}},
    "the loader": {"environment": {"variables": {"LD_PRELOAD": "x"}}},
    **{
        f"the variable {name}": {"environment": {"variables": {name: "x"}}}
        for name in STEERING
    },
    "another cluster": {"environment": {"variables": {"KUBERNETES_PORT": "x"}}},
    "a variable without a name": {"environment": {"variables": {"": "x"}}},
    "a variable that is a number": {"environment": {"variables": {"A": 1}}},
    "a secret that is no name": {"environment": {"secrets": ["A b"]}},
    "a key without a secret": {"apiKeySecret": {"key": "k"}},
    "no amount": {"resources": {"limits": {"memory": "lots"}}},
    "a negative amount": {"resources": {"limits": {"memory": -1}}},
    "more than its limit": {
        "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": 2_000_000}}
    },
    "too many restarts": {"maxRestarts": 11},
    "a runtime class that is no name": {"runtimeClassName": "gVisor 2"},
    "a priority class that is no name": {"priorityClassName": "High"},
    "the cluster's priority": {"priorityClassName": "system-node-critical"},
    "an annotation that is a number": {"podAnnotations": {"a": 1}},
    "too long an annotation": {"podAnnotations": {"a": "x" * 4097}},
    "too many annotations": {"podAnnotations": {f"a{n}": "" for n in range(33)}},
    "an annotation that opens the container": {
        "podAnnotations": {
            "container.apparmor.security.beta.kubernetes.io/session": "unconfined"
        }
    },
    **{
        f"the annotation {name}": {"podAnnotations": {name: "x"}}
        for name in (
            "cdi.k8s.io/gpu",
            "dev.gvisor.flag.network",
            "io.katacontainers.config.hypervisor.path",
            "io.kubernetes.cri-o.Devices",
            "iam.amazonaws.com/role",
        )
    },
    "an annotation of ours": {"podAnnotations": {"midwatch.dev/x": ""}},
    "itself": {"resumeFrom": "fix-login"},
    "an odd session": {"resumeFrom": "A/b"},
    "too long a name for people": {"displayName": "x" * 201},
}


@pytest.mark.parametrize("why", SPECS)
def test_both_refuse(why: str) -> None:
    document = resource(SPECS[why])
    assert refusals(document)
    assert refused_by_operator(document)


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"prompt": "", "interactive": True},
    {"mainRepoIndex": 1, "repos": [{"input": {"url": f"{URL}{i}"}} for i in "ab"]},
    {"repos": [{"input": {"url": "git@git.example:team/app.git", "branch": "fix/ü"}}]},
    {"repos": [{"input": {"url": "ssh://git@git.example:2222/a"}}]},
    {"repos": [{"input": {"url": "https://org@dev.azure.com/org/My%20P/_git/r"}}]},
    {"repos": [{"input": {"url": "git@ssh.dev.azure.com:v3/org/My%20P/r"}}]},
    {"repos": [{"input": {"url": "https://emma@bitbucket.example:8443/scm/~e/r"}}]},
    {"repos": [{"input": {"url": "https://e%40x.org@bitbucket.org/e/r.git"}}]},
    {"repos": [{"input": {"url": "ssh://git@bitbucket.example:7999/~e/r.git"}}]},
    {"repos": [{"input": {"url": "ssh://git@ssh.github.com:443/o/r.git"}}]},
    {"repos": [{"input": {"url": "ssh://e@x.org@source.example:2022/p/p/r/r"}}]},
    {"repos": [{"input": {"url": "https://[fe80::1]:8443/a@b/r"}}]},
    {"repos": [{"input": {"url": "file:///srv/a.git"}, "output": {"branch": "out"}}]},
    {
        "repos": [
            {"input": {"url": URL}},
            {"input": {"url": URL, "branch": "v2"}},
            {"name": "third", "input": {"url": URL}},
        ]
    },
    {"llmSettings": {"maxBudgetUsd": 2, "maxTurns": 5, "effort": "max"}},
    {"environment": {"secrets": ["a", "b.c"], "variables": {"GIT_USERNAME": "me"}}},
    {"environment": {"variables": {"GIT_AUTHOR_NAME": "Ann", "NODE_ENV": "test"}}},
    {"environment": {"variables": {"AWS_REGION": "eu-west-1", "PS1": "$", "TZ": ""}}},
    {
        "podAnnotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        "runtimeClassName": "gvisor",
        "priorityClassName": "batch.low",
    },
    {"displayName": "ü" * 200, "resources": {"limits": {"cpu": None}}},
    {"environment": {"variables": {"A": None, "B": ""}, "secrets": None}},
    {"resources": {"limits": {"cpu": 2, "nvidia.com/gpu": 1, "memory": "1.5Gi"}}},
    {"resources": {"requests": {"cpu": "1500m"}, "limits": {"cpu": "1.5"}}},
    {"resources": {"requests": {"a.b/c": 2}, "limits": {"cpu": 1}}},
    {"stop": None, "unknown": 1, "displayName": "für Leute", "resumeFrom": "before"},
]


@pytest.mark.parametrize("spec", ACCEPTED)
def test_both_accept(spec: dict[str, Any]) -> None:
    document = resource(spec)
    assert refusals(document) == []
    read_resource(document)


def test_the_name_leaves_room_for_those_of_jobs() -> None:
    for length, wrong in ((MAX_NAME, False), (MAX_NAME + 1, True)):
        document = resource(name="n" * length)
        assert bool(refusals(document)) == refused_by_operator(document) == wrong


@pytest.mark.parametrize(("name", "wrong"), [("fix-1", False), ("fix.1", True)])
def test_a_name_that_its_pods_could_not_have_is_refused(name: str, wrong: bool) -> None:
    document = resource(name=name)
    assert bool(refusals(document)) == refused_by_operator(document) == wrong


@pytest.mark.parametrize(
    "spec",
    [
        {"environment": {"variables": {"a b": "x"}}},
        {"podAnnotations": {"a b": "x"}},
        {"podAnnotations": {"/a": "x"}},
        {"podAnnotations": {f"a/{'b' * 64}": "x"}},
    ],
)
def test_odd_characters_in_a_name_only_the_operator_sees(spec: dict[str, Any]) -> None:
    document = resource(spec)
    assert refusals(document) == []
    assert refused_by_operator(document)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"runtimeClassName": "gVisor 2"}, "spec.runtimeClassName: 'gVisor 2' is not"),
        ({"priorityClassName": "A"}, "spec.priorityClassName: 'A' is not a valid"),
        ({"podAnnotations": {"a b": ""}}, "spec.podAnnotations: 'a b' is not a valid"),
        ({"environment": {"variables": {"BASH_ENV": ""}}}, "BASH_ENV is reserved"),
    ],
)
def test_what_is_refused_is_named(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecRefused) as raised:
        read_resource(resource(spec))
    assert said in raised.value.one_line()


def chosen(*pool: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(pool)


TEXTS = st.text(
    st.sampled_from("aZ0-_./:@~^ \n\0*[\\{ü\u202e=$ext"), max_size=12
) | chosen(URL, "main", "HEAD", "a.lock", "con", "x/.y", "git@h:p", "h:/p", "h://p")
REPO = st.fixed_dictionaries(
    {"input": st.fixed_dictionaries({"url": TEXTS | chosen(URL)})},
    optional={
        "name": TEXTS | st.none(),
        "output": st.fixed_dictionaries({}, optional={"url": TEXTS, "branch": TEXTS}),
    },
)
AMOUNTS = chosen(1, -1, 1.5, "1", "1Gi", "5m", "x", "", "1 ", True, None)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": TEXTS,
    "interactive": st.booleans() | chosen(0, "true", None),
    "repos": st.lists(REPO, max_size=3)
    | st.lists(
        st.builds(
            lambda name, branch: {
                "name": name,
                "input": {"url": URL, "branch": branch},
            },
            chosen(None, "a", "A", "b"),
            chosen(None, "x", "y"),
        ),
        max_size=4,
    ),
    "mainRepoIndex": st.integers(-1, 3) | st.booleans(),
    "timeout": chosen(0, 1, 604_800, 604_801, 1.5, "1", True, None),
    "llmSettings": st.fixed_dictionaries(
        {},
        optional={
            "model": TEXTS,
            "maxTurns": st.integers(-1, 2),
            "maxBudgetUsd": chosen(0, 0.0, 0.5, -1, 3, "1", True),
            "effort": chosen("low", "max", "", None),
        },
    ),
    "environment": st.fixed_dictionaries(
        {},
        optional={
            "secrets": st.lists(TEXTS, max_size=2),
            "variables": st.dictionaries(
                chosen("A", "PATH", "LD_X", "GIT_USERNAME", "MIDWATCH_X", "MODELS"),
                TEXTS | st.none(),
                max_size=3,
            ),
        },
    ),
    "resources": st.fixed_dictionaries(
        {},
        optional={
            part: st.dictionaries(
                chosen("cpu", "memory"),
                chosen(1, 1, 2, "1", "1.5", "1Gi", "1G", "5m") | AMOUNTS,
            )
            for part in ("requests", "limits")
        },
    ),
    "apiKeySecret": st.fixed_dictionaries({"name": TEXTS}, optional={"key": TEXTS}),
    "resumeFrom": TEXTS | chosen("fix-login", "other"),
    "stop": chosen(True, False, None, 1),
    "maxRestarts": st.integers(-1, 11),
}
# Two at a time: with more, hardly one in a thousand would be accepted.
ANY = st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)


@given(ANY)
def test_both_say_the_same_of_anything(spec: dict[str, Any]) -> None:
    document = resource(spec)
    why = refusals(document)
    assert bool(why) == refused_by_operator(document), why


# ------------------------------------------------------------------ what may change

CHANGED: dict[str, Any] = {
    "prompt": "Else.",
    "displayName": "Else",
    "interactive": True,
    "repos": [{"input": {"url": URL, "branch": "else"}}],
    "mainRepoIndex": 1,
    "llmSettings": {"effort": "low"},
    "timeout": 5,
    "idleTimeout": 5,
    "autoPushOnComplete": True,
    "environment": {"variables": {"A": "b"}},
    "apiKeySecret": {"name": "else"},
    "resources": {"limits": {"cpu": 1}},
    "podAnnotations": {"a": "b"},
    "runtimeClassName": "else",
    "priorityClassName": "else",
    "trustRepositories": True,
    "resumeFrom": "else",
    "maxRestarts": 3,
    "stop": True,
}


@pytest.mark.parametrize("name", fields(Spec))
def test_only_what_a_running_session_heeds_can_change(name: str) -> None:
    repos = [{"input": {"url": URL}}, {"input": {"url": URL + "2"}}]
    old, new = resource(repos=repos), resource(repos=repos)
    new["spec"][name] = CHANGED[name]
    if name == "repos":
        new["spec"]["repos"] = [*repos, *CHANGED["repos"]]
    assert refusals(new) == []
    said = refusals(new, old)
    assert bool(said) == (name not in CHANGEABLE)
    if said:
        assert said[0].startswith(f"{name} is immutable")
    assert refusals(old, old) == []


def test_a_stop_cannot_be_taken_back() -> None:
    assert refusals(resource(), resource(stop=True)) == ["a stop cannot be undone"]


def with_status(**status: Any) -> dict[str, Any]:
    return {**resource(), "status": status}


def test_the_end_stays() -> None:
    ended, again = with_status(phase="Failed"), with_status(phase="Running")
    assert refusals(ended, again) == []
    assert refusals(again, ended) == ["the session has ended: its phase cannot change"]
    assert refusals(with_status(message="x"), ended)
    assert refusals(with_status(phase="Failed", message="more"), ended) == []
    assert refusals(with_status(phase="Unknown"))


def test_a_whole_status_is_taken() -> None:
    at = "2026-11-22T01:02:03Z"
    assert not refusals(
        with_status(
            phase="Running",
            reason="Started",
            message="it runs",
            observedGeneration=1,
            startTime=at,
            lastActivityTime=at,
            jobName="fix-login-run-1",
            podName="fix-login-run-1-abcde",
            attempt=1,
            restarts=0,
            sessionId="9d3f",
            model="claude-sonnet-5-5",
            numTurns=3,
            usage={"inputTokens": 1, "cacheReadInputTokens": 2},
            totalCostUsd=0.25,
            result="done",
            conditions=[
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "Started",
                    "message": "",
                    "lastTransitionTime": at,
                }
            ],
            repos=[{"name": "app", "state": "pushed", "pushedTo": "origin fix"}],
        )
    )
