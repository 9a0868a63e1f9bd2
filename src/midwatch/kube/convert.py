"""Sessions of the platform that inspired this one, `vteam.ambient-code/v1alpha1`, made sessions of old_group. Pure.

That resource, as its CustomResourceDefinition has it (components/manifests of ambient-code/platform and its
predecessor vTeam): prompt (later initialPrompt), displayName, interactive, repos[] with input and output or, before
and after that, url and branch, mainRepoIndex, llmSettings, timeout, autoPushOnComplete, and what its backend added.
What cannot be carried over is said, one line each; nothing is rest out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midwatch.kube.environment import is_reserved
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import API_VERSION, KIND, MAX_SECONDS, VARIABLE_NAME, fits
from midwatch.model import Json

OLD_GROUP = "vteam.ambient-code"
_OLD_TIMEOUT = 300
"""Seconds that the old platform gave a session that did not say."""
_OLD_BRANCH = "main"
"""The branch that it took where an input named none."""
_SERVER_MADE = frozenset(
    {
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)
"""Metadata that the API server makes anew."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_WHY_NOT = {
    "spec.llmSettings.temperature": "Claude Code has no such setting",
    "spec.llmSettings.maxTokens": "Claude Code has no such setting",
    "spec.userContext": "who created a session is in the API server's audit log",
    "spec.botAccount": "each session has an account of its own; tokens come by environment.secrets",
    "spec.activeWorkflow": "add its repository to repos, and say in the prompt what to take from it",
    "spec.project": "metadata.namespace says where it runs",
    "spec.resourceOverrides.storageClass": "the operator's setting storage_class says it",
    "spec.resourceOverrides.priorityClass": "it has no counterpart",
    "spec.repos[].autoPush": "autoPushOnComplete is for all repositories",
    "metadata.ownerReferences": "its owner may not be there",
    "metadata.finalizers": "nobody would take them off",
}


@dataclass(frozen=True, slots=True)
class Converted:
    """A document as it is now, and what a person should know: one line each."""

    document: Json
    warnings: tuple[str, ...] = ()


def is_old_session(body: Mapping[str, Any]) -> bool:
    group = str(body.get("apiVersion") or "").partition("/")[0]
    return group == OLD_GROUP and body.get("kind") == KIND


def convert(body: Mapping[str, Any]) -> Converted:
    """The document of old_group that means the same. What is no old session (or a list with one) stays as it is.

    Raises SpecRefused, which names the field, for what would be refused by the API server.
    """
    items = body.get("items")
    if isinstance(items, list) and str(body.get("kind", "")).endswith("List"):
        return _convert_list(body, items)
    if not is_old_session(body):
        return Converted(dict(body))
    return _Conversion(body).converted()


def _convert_list(body: Mapping[str, Any], items: list[Any]) -> Converted:
    done = [convert(_mapping(item, f"items[{i}]")) for i, item in enumerate(items)]
    old_group = str(body.get("apiVersion") or "").startswith(f"{OLD_GROUP}/")
    head = {"apiVersion": "v1", "kind": "List"} if old_group else {}
    document = {**body, **head, "items": [one.document for one in done]}
    return Converted(document, tuple(line for one in done for line in one.warnings))


@dataclass(slots=True)
class _Conversion:
    """One resource on its way. What is taken from `old` is what has a counterpart."""

    old: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)

    def converted(self) -> Converted:
        metadata = self._metadata()
        document: Json = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": metadata,
            "spec": self._spec(),
        }
        status = self.old.get("status")
        if status:
            phase = status.get("phase") if isinstance(status, Mapping) else None
            self._warn(
                f"status ({phase}) is rest out: once applied, the session runs again"
            )
        read_resource({**document, "metadata": {"name": metadata.get("name", "")}})
        return Converted(document, tuple(self.warnings))

    def _warn(self, line: str) -> None:
        about = self.old.get("metadata")
        name = about.get("name") if isinstance(about, Mapping) else None
        self.warnings.append(f"{name or 'a session without a name'}: {line}")

    def _warn_left_out(self, path: str, rest: Mapping[str, Any]) -> None:
        for key, value in rest.items():
            location = f"{path}.{key}"
            if value not in (None, "", [], {}):
                kind = re.sub(r"\[\d+\]", "[]", location)
                why = _WHY_NOT.get(kind, "it has no counterpart")
                self._warn(f"{location} is rest out: {why}")

    # -------------------------------------------------- metadata

    def _metadata(self) -> Json:
        rest = dict(_mapping(self.old.get("metadata"), "metadata"))
        result: Json = {}
        for key in ("name", "generateName", "namespace", "labels", "annotations"):
            if rest.get(key):
                result[key] = rest[key]
            rest.pop(key, None)
        if "annotations" in result:
            result["annotations"] = self._annotations(result["annotations"])
        if not (result.get("name") or result.get("generateName")):
            raise SpecRefused("is missing", path="metadata.name")
        if not isinstance(result.get("name", ""), str):
            raise SpecRefused("is not a text", path="metadata.name")
        self._warn_left_out(
            "metadata", {k: v for k, v in rest.items() if k not in _SERVER_MADE}
        )
        return result

    def _annotations(self, given: Any) -> Json:
        """Without the one that kubectl would compare the new document with."""
        written = _mapping(given, "metadata.annotations")
        return {k: v for k, v in written.items() if k != _LAST_APPLIED}

    # -------------------------------------------------- spec

    def _spec(self) -> Json:
        rest = dict(_mapping(self.old.get("spec"), "spec"))
        spec: Json = self._prompt(rest)
        for key in (
            "displayName",
            "interactive",
            "mainRepoIndex",
            "autoPushOnComplete",
        ):
            if rest.get(key) is not None:
                spec[key] = rest[key]
            rest.pop(key, None)
        spec["repos"] = self._repos(rest.pop("repos", None))
        model = self._llm_settings(rest.pop("llmSettings", None))
        spec |= {
            **({"llmSettings": model} if model else {}),
            **self._times(rest),
            **self._environment(rest.pop("environmentVariables", None)),
            **self._resources(rest.pop("resourceOverrides", None)),
        }
        self._warn_left_out("spec", rest)
        return spec

    def _prompt(self, rest: Json) -> Json:
        """`interactive` was false beside a prompt, and true in the later form with initialPrompt."""
        first, later = rest.pop("prompt", None), rest.pop("initialPrompt", None)
        if first and later:
            self._warn("spec.initialPrompt is rest out: spec.prompt says what to do")
        spec: Json = {"prompt": first or later or ""}
        if not first and rest.get("interactive") is None:
            self._warn(
                "spec.interactive is not given: true, as it was without spec.prompt"
            )
            spec["interactive"] = True
        return spec

    def _repos(self, given: Any) -> list[Json]:
        if given is None:
            return []
        if not isinstance(given, list):
            raise SpecRefused("is not a list", path="spec.repos")
        return [
            self._repo(dict(_mapping(repo, f"spec.repos[{i}]")), f"spec.repos[{i}]")
            for i, repo in enumerate(given)
        ]

    def _repo(self, rest: Json, path: str) -> Json:
        plain = {key: rest.pop(key, None) for key in ("url", "branch")}
        source = rest.pop("input", None)
        if source is None:
            repo: Json = {"input": self._place(plain, path)}
        else:
            self._warn_left_out(path, plain)
            location = self._place(source, f"{path}.input")
            repo = {"input": {"branch": _OLD_BRANCH, **location}}
        output = rest.pop("output", None)
        if output is not None:
            location = self._place(output, f"{path}.output")
            if location:
                repo["output"] = location
            if not location.get("branch"):
                self._warn(
                    f"{path}.output names no branch: the session's own is pushed"
                )
        rest.pop("status", None)  # what became of it, as in the status
        if rest.get("autoPush") is False:
            del rest["autoPush"]
        self._warn_left_out(path, rest)
        return repo

    def _place(self, given: Any, path: str) -> Json:
        rest = dict(_mapping(given, path))
        location = {key: rest.pop(key, None) for key in ("url", "branch")}
        self._warn_left_out(path, rest)
        return {key: value for key, value in location.items() if value}

    def _llm_settings(self, given: Any) -> Json:
        rest = dict(_mapping(given, "spec.llmSettings"))
        model = rest.pop("model", None)
        self._warn_left_out("spec.llmSettings", rest)
        return {"model": model} if model else {}

    def _times(self, rest: Json) -> Json:
        timeout, idle = rest.pop("timeout", None), rest.pop("inactivityTimeout", None)
        if timeout is None:
            self._warn(
                f"spec.timeout is not given: {_OLD_TIMEOUT} seconds, as it was before"
            )
            timeout = _OLD_TIMEOUT
        times = {"timeout": self._seconds(timeout, "spec.timeout")}
        if idle is not None:
            times["idleTimeout"] = self._seconds(idle, "spec.inactivityTimeout")
        return times

    def _seconds(self, given: Any, path: str) -> Any:
        """What is no whole number is refused later, with all else; 0 was no limit."""
        if not isinstance(given, int) or isinstance(given, bool):
            return given
        if 1 <= given <= MAX_SECONDS:
            return given
        self._warn(f"{path} {given} becomes {MAX_SECONDS} seconds, the most there is")
        return MAX_SECONDS

    def _environment(self, given: Any) -> Json:
        path = "spec.environmentVariables"
        result = {}
        for name, value in _mapping(given, path).items():
            if is_reserved(name):
                self._warn(
                    f"{path}.{name} is rest out: it is reserved; keys and tokens come by secret"
                )
            elif not fits(VARIABLE_NAME, name) or not isinstance(value, str):
                self._warn(f"{path}.{name} is rest out: not a name and a text")
            else:
                result[name] = value
        return {"environment": {"variables": result}} if result else {}

    def _resources(self, given: Any) -> Json:
        """Asked for and limited to the same, so that a pod has what it was given."""
        rest = dict(_mapping(given, "spec.resourceOverrides"))
        amounts = {key: rest.pop(key, None) for key in ("cpu", "memory")}
        result = {key: value for key, value in amounts.items() if value}
        self._warn_left_out("spec.resourceOverrides", rest)
        if not result:
            return {}
        return {"resources": {"requests": result, "limits": dict(result)}}


def _mapping(given: Any, path: str) -> Mapping[str, Any]:
    """An object, empty for none. Raises SpecRefused for anything else."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise SpecRefused("is not an object", path=path)
    return given
