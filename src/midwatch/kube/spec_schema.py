"""The schema of `spec`: what `resource` reads, refused at the API server where it is wrong.

What a single field cannot say stands in rules in CEL, whose cost the API server estimates from the bounds of
what they read: that is why all has a bound. The keys of a map can have none, so of the names of variables only
those that are reserved are refused here, and odd characters by `resource`.
"""

from __future__ import annotations

from typing import get_args

from ..model import Json
from .names import MAX_NAME
from .resource import Effort
from .rules import (
    BAD_BRANCH,
    DEVICE,
    FOLDER,
    MAX_BRANCH,
    MAX_PROMPT_BYTES,
    MAX_REPOS,
    MAX_RESTARTS,
    MAX_SECONDS,
    MAX_SECRETS,
    MAX_URL,
    MAX_VARIABLE,
    MAX_VARIABLE_NAME,
    MAX_VARIABLES,
    MODEL,
    NO_NUL,
    NOT_BLANK,
    OBJECT_NAME,
    QUANTITY,
    RESERVED_PREFIXES,
    RESERVED_VARIABLES,
    SECRET_KEY,
    URL,
    URL_WITH_CREDENTIALS,
)
from .schema import by_name, flag, listed, part, rule, rules, text, whole

CHANGEABLE = frozenset({"stop", "displayName", "maxRestarts"})
"""Fields of `spec` that a running session heeds; any other would be heeded by nobody."""


def spec_schema() -> Json:
    properties = _spec_fields()
    fixed = [name for name in properties if name not in CHANGEABLE]
    return part(
        "What is asked for. Only stop, displayName and maxRestarts can be changed later.",
        properties,
        required=["repos"],
        **rules(
            rule(
                f"self.interactive || self.prompt.matches(r'{NOT_BLANK}')",
                "prompt is empty: say what to do, or set interactive",
                ".prompt",
            ),
            rule(
                "self.mainRepoIndex < self.repos.size()",
                "mainRepoIndex names no repository: it counts repos from 0",
                ".mainRepoIndex",
            ),
            *(_unchanged(name, "default" in properties[name]) for name in fixed),
        ),
    )


def _unchanged(name: str, always: bool) -> Json:
    same = f"self.{name} == oldSelf.{name}"
    if not always and name != "repos":
        same = (
            f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})"
        )
    message = f"{name} cannot be changed: create another session (resumeFrom continues this one)"
    return rule(same, message, f".{name}")


def _spec_fields() -> dict[str, Json]:
    return {
        "prompt": _prompt(),
        "displayName": text("A name for people.", 200),
        "interactive": flag("Stay open and read messages until told to end."),
        "repos": _repos(),
        "mainRepoIndex": whole(
            "The repository that is Claude's working directory, counted from 0.",
            default=0,
        ),
        "llmSettings": _llm_settings(),
        "timeout": _seconds("Longest run, restarts included, in seconds.", 3600),
        "idleTimeout": _seconds(
            "Longest time without a sign of life in a turn, or without a message in interactive mode, in seconds.",
            900,
        ),
        "autoPushOnComplete": flag("Push what was done, once it is Completed."),
        "environment": _environment(),
        "apiKeySecret": _api_key_secret(),
        "resources": _resources(),
        "trustRepositories": flag(
            "Load the repositories' own .claude settings, hooks and .mcp.json, which run what they say."
        ),
        "resumeFrom": _object_name(
            "The session, of this namespace, whose workspace and conversation this one continues.",
            MAX_NAME,
        ),
        "maxRestarts": whole(
            "How often a lost pod is started again.",
            default=2,
            maximum=MAX_RESTARTS,
        ),
        "stop": flag(
            "A request to stop: what was done is saved first.",
            **rules(rule("!oldSelf || self", "a stop cannot be taken back")),
        ),
    }


def _prompt() -> Json:
    return text(
        "What Claude should do. May be empty if interactive.",
        MAX_PROMPT_BYTES,
        default="",
        pattern=NO_NUL,
        **rules(
            rule(
                f"bytes(self).size() <= {MAX_PROMPT_BYTES}",
                f"prompt has at most {MAX_PROMPT_BYTES} bytes: put the long part into a file of a repository",
            )
        ),
    )


def _seconds(description: str, default: int) -> Json:
    return whole(description, 1, maximum=MAX_SECONDS, default=default)


def _object_name(description: str, most: int = 253) -> Json:
    return text(description, most, minLength=1, pattern=OBJECT_NAME)


def _repos() -> Json:
    repo = part(
        "Cloned from input, pushed to output.",
        {
            "name": _folder(),
            "input": part(
                "Where it is cloned from.",
                {
                    "url": _url("https, http, ssh or git@host:path."),
                    "branch": _branch("Where to start; the repository's own default."),
                },
                required=["url"],
            ),
            "output": part(
                "Where commits are pushed to.",
                {
                    "url": _url("The repository; by default the one of input."),
                    "branch": _branch("The branch; by default the session's own."),
                },
            ),
        },
        required=["input"],
    )
    name = "self.all(r, !has(r.name) || self.exists_one(o, has(o.name) && o.name.lowerAscii() == r.name.lowerAscii()))"
    once = (
        "self.all(r, has(r.name) || self.exists_one(o, !has(o.name) && o.input.url == r.input.url"
        " && (has(o.input.branch) ? o.input.branch : '') == (has(r.input.branch) ? r.input.branch : '')))"
    )
    return listed(
        "The repositories of the workspace, cloned side by side.",
        repo,
        MAX_REPOS,
        minItems=1,
        **rules(
            rule(name, "two repositories have the same name"),
            rule(
                once,
                "a repository is named twice: name it once, or give its clones names",
            ),
        ),
    )


def _folder() -> Json:
    return text(
        "Its folder in the workspace; by default the last part of its URL.",
        100,
        minLength=1,
        **rules(
            rule(
                f"self.matches(r'{FOLDER}') && !self.lowerAscii().matches(r'{DEVICE}')",
                "not the name of a folder: use letters, digits, dots and dashes",
            )
        ),
    )


def _url(description: str) -> Json:
    return text(
        description,
        MAX_URL,
        minLength=1,
        **rules(
            rule(
                f"self.matches(r'{URL}')",
                "not the URL of a repository: give https, http, ssh or git@host:path, without blanks",
            ),
            rule(
                f"!self.matches(r'{URL_WITH_CREDENTIALS}')",
                "credentials in the URL: give a token by a secret (environment.secrets, GIT_TOKEN)",
            ),
        ),
    )


def _branch(description: str) -> Json:
    return text(
        description,
        MAX_BRANCH,
        minLength=1,
        **rules(
            rule(
                f"!self.matches(r'{BAD_BRANCH}')",
                "not a name that git takes for a branch",
            )
        ),
    )


def _llm_settings() -> Json:
    return part(
        "How Claude works; what is not said here the operator's settings say.",
        {
            "model": text("The model.", 100, minLength=1, pattern=MODEL),
            "maxTurns": whole("Calls of the API in one turn.", 1, maximum=1_000_000),
            "maxBudgetUsd": {
                "type": "number",
                "description": "Dollars of the whole session.",
                "minimum": 0,
                "exclusiveMinimum": True,
                "maximum": 1_000_000,
            },
            "effort": {
                "type": "string",
                "description": "How much the model thinks.",
                "enum": list(get_args(Effort)),
            },
        },
        default={},
    )


def _environment() -> Json:
    reserved = ", ".join(f"'{name}'" for name in RESERVED_VARIABLES)
    # One by one: a prefix out of a list would have no bound in the estimate of older servers.
    begins = " || ".join(f"name.startsWith('{prefix}')" for prefix in RESERVED_PREFIXES)
    variables = by_name(
        "Literal values by name. Keys and tokens belong into secrets.",
        text("The value, as it is.", MAX_VARIABLE, pattern=NO_NUL),
        MAX_VARIABLES,
        default={},
        **rules(
            rule(
                f"self.all(name, name.size() > 0 && name.size() <= {MAX_VARIABLE_NAME})",
                f"the name of a variable has 1 to {MAX_VARIABLE_NAME} characters",
            ),
            rule(
                f"self.all(name, !(name in [{reserved}] || {begins}))",
                "a variable is reserved: fields of spec or the operator set it; keys and tokens come by secret",
            ),
        ),
    )
    secrets = listed(
        "Secrets of this namespace: each of their keys becomes a variable.",
        _object_name("Its name."),
        MAX_SECRETS,
        default=[],
    )
    return part(
        "Variables of the session.",
        {"secrets": secrets, "variables": variables},
        default={},
    )


def _api_key_secret() -> Json:
    return part(
        "The key of the Claude API; by default the one of the operator's settings.",
        {
            "name": _object_name("A secret of this namespace."),
            "key": text(
                "The key in it.",
                253,
                minLength=1,
                pattern=SECRET_KEY,
                default="ANTHROPIC_API_KEY",
            ),
        },
        required=["name"],
    )


def _resources() -> Json:
    amount = {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
        "minimum": 0,
        "pattern": QUANTITY,
        "maxLength": 30,
    }
    return part(
        "What the session's container requests and is limited to.",
        {
            "requests": by_name("Amounts by name, such as cpu: 500m.", amount, 20),
            "limits": by_name("Amounts by name, such as memory: 4Gi.", amount, 20),
        },
        default={},
        **rules(
            rule(
                "!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || "
                "!quantity(string(self.requests[name])).isGreaterThan(quantity(string(self.limits[name]))))",
                "what is requested is at most the limit of the same name",
            )
        ),
    )
