"""The schema of `status`. Bounds are wide: a status that is refused would be lost."""

from __future__ import annotations

from typing import Any

from ..events import Phase
from ..model import Json
from .schema import instant, listed, part, rule, rules, text, whole

_MESSAGE = 32_768
_NAME = 253


def status_schema() -> Json:
    return part(
        "What has become of it.",
        {
            **_course(),
            **_place(),
            **_work(),
            "conditions": _conditions(),
            "repos": _repos(),
        },
        **rules(
            rule(
                "!has(oldSelf.phase) || has(self.phase)",
                "the phase cannot be taken away",
                ".phase",
            )
        ),
    )


def _course() -> Json:
    terminal = ", ".join(f"'{phase}'" for phase in Phase if phase.terminal)
    ended = rule(
        f"self == oldSelf || !(oldSelf in [{terminal}])",
        "the session has ended: its phase stays",
    )
    return {
        "phase": {
            "type": "string",
            "description": "Completed, Failed and Stopped are the end, and stay.",
            "enum": [phase.value for phase in Phase],
            **rules(ended),
        },
        "reason": text("Why, in one word of CamelCase.", 1024),
        "message": text("Why, and what to do about it.", _MESSAGE),
        "observedGeneration": whole("The generation of spec that this is about."),
        "startTime": instant("When the first attempt began."),
        "completionTime": instant("When it ended."),
        "lastActivityTime": instant("The last sign of life of the session."),
    }


def _place() -> Json:
    return {
        "jobName": text("The Job of the present attempt.", _NAME),
        "podName": text("The pod of the present attempt.", _NAME),
        "attempt": whole("Which attempt this is, from 1."),
        "restarts": whole("How often a lost pod was started again."),
        "sessionId": text("Claude's own id of the conversation.", _NAME),
    }


def _work() -> Json:
    tokens: Any = {
        name: whole(f"{meaning}, in tokens.")
        for name, meaning in {
            "inputTokens": "Read",
            "outputTokens": "Written",
            "cacheReadInputTokens": "Read from the cache",
            "cacheCreationInputTokens": "Put into the cache",
        }.items()
    }
    return {
        "model": text("The model that works.", _NAME),
        "numTurns": whole("Calls of the API."),
        "usage": part("What was read and written.", tokens),
        "totalCostUsd": {
            "type": "number",
            "minimum": 0,
            "description": "Dollars spent.",
        },
        "result": text("What Claude said at the end, shortened.", 8192),
    }


def _conditions() -> Json:
    condition = part(
        "A condition, as Kubernetes has them.",
        {
            "type": text("Accepted, Ready, WorkspaceSaved or Finished.", 316),
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": text("Why, in one word of CamelCase.", 1024, minLength=1),
            "message": text("Why, and what to do about it.", _MESSAGE),
            "lastTransitionTime": instant("When status became what it is."),
            "observedGeneration": whole("The generation of spec that this is about."),
        },
        required=["type", "status", "reason", "message", "lastTransitionTime"],
    )
    return listed(
        "What holds and what does not.",
        condition,
        16,
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


def _repos() -> Json:
    repo = part(
        "A repository, as the session left it.",
        {
            "name": text("Its folder.", _NAME),
            "state": {
                "type": "string",
                "enum": ["clean", "changed", "pushed", "failed"],
            },
            "branch": text("The branch that the session works on.", 1024),
            "added": whole("Lines added."),
            "removed": whole("Lines removed."),
            "files": whole("Files changed."),
            "untracked": whole("Files that git does not know."),
            "commits": whole("Commits made."),
            "pushedTo": text("The repository and branch they are at.", 4096),
            "message": text("What went wrong.", _MESSAGE),
        },
        required=["name", "state"],
    )
    return listed("The repositories of the workspace.", repo, 64)
