"""The environment of a session's pod, by the contract in `environment`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..model import Json
from ..settings import OperatorSettings
from .environment import VARIABLE_PREFIX
from .names import job_name, secret_name
from .resource import SecretKey, SessionResource, Spec

WORKSPACE_PATH = "/workspace"
STATE_PATH = "/session"
CACHE_PATH = "/cache"


def variables(
    resource: SessionResource,
    settings: OperatorSettings,
    attempt: int,
    timeout: int,
    resume_from: SessionResource | None,
) -> list[Json]:
    """The container's `env`. Those of the contract come over all others; null ones are left to their default."""
    spec = resource.spec
    ours: dict[str, str | None] = {
        **_identity(resource, attempt),
        **_wishes(spec),
        "WORKSPACE_PATH": WORKSPACE_PATH,
        "STATE_PATH": STATE_PATH,
        "CACHE_PATH": CACHE_PATH,
        "STATUS": "resource",
        "ANTHROPIC_BASE_URL": settings.base_url,
        "MODEL": spec.llm_settings.model or settings.model,
        "TIMEOUT": str(timeout),
        "RESUME_FROM": spec.resume_from or "",
        "RESUME_FROM_FOLDER": resume_from.folder if resume_from else "",
        "CONTENT_URL": settings.content_url or "",
        "CONTENT_FOLDER": resource.folder if settings.content_url else "",
        "SYNC_INTERVAL": f"{settings.sync_interval:g}",
        "STATUS_INTERVAL": f"{settings.status_interval:g}",
        "TERMINATION_GRACE": f"{settings.termination_grace:g}",
    }
    asked = {
        VARIABLE_PREFIX + name: value
        for name, value in spec.environment.variables.items()
    }
    literal = {**settings.variables, **asked, **_given(ours)}
    sources = _sources(resource, settings)
    return [
        *(
            {"name": name, "value": _literally(value)}
            for name, value in literal.items()
            if name not in sources
        ),
        *({"name": name, "valueFrom": source} for name, source in sources.items()),
    ]


def _identity(resource: SessionResource, attempt: int) -> dict[str, str]:
    return {
        "SESSION_NAME": resource.name,
        "SESSION_NAMESPACE": resource.namespace,
        "SESSION_UID": resource.uid,
        "SESSION_GENERATION": str(resource.generation),
        "SESSION_ATTEMPT": str(attempt),
        "JOB_NAME": job_name(resource.name, attempt),
    }


def _wishes(spec: Spec) -> dict[str, str | None]:
    llm = spec.llm_settings
    repos = [repo.model_dump(by_alias=True, exclude_none=True) for repo in spec.repos]
    return {
        "PROMPT": spec.prompt,
        "INTERACTIVE": _truth(spec.interactive),
        "REPOS_JSON": json.dumps(repos, separators=(",", ":"), ensure_ascii=False),
        "MAIN_REPO_INDEX": str(spec.main_repo_index),
        "MAX_TURNS": None if llm.max_turns is None else str(llm.max_turns),
        "MAX_BUDGET_USD": (
            None if llm.max_budget_usd is None else str(llm.max_budget_usd)
        ),
        "EFFORT": llm.effort,
        "IDLE_TIMEOUT": str(spec.idle_timeout),
        "AUTO_PUSH_ON_COMPLETE": _truth(spec.auto_push_on_complete),
        "TRUST_REPOSITORIES": _truth(spec.trust_repositories),
    }


def _sources(resource: SessionResource, settings: OperatorSettings) -> dict[str, Json]:
    """What is not in the Job itself: secrets, and the name that the pod is given."""
    sources: dict[str, Json] = {}
    key = resource.spec.api_key_secret
    if key is None and settings.api_key_secret is not None:
        given = settings.api_key_secret
        key = SecretKey(name=given.name, key=given.key)
    if key is not None:
        sources["ANTHROPIC_API_KEY"] = _secret(key.name, key.key)
    if settings.content_url:
        sources["CONTENT_TOKEN"] = _secret(secret_name(resource.name), "token")
    sources["POD_NAME"] = {"fieldRef": {"fieldPath": "metadata.name"}}
    return sources


def _secret(name: str, key: str) -> Json:
    return {"secretKeyRef": {"name": name, "key": key}}


def _given(ours: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in ours.items() if value is not None}


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _literally(value: str) -> str:
    """Kubernetes puts other variables, secret ones too, in place of $(NAME), and makes $ of $$."""
    return value.replace("$", "$$")
