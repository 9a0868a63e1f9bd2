"""Convert sessions of `vteam.ambient-code/v1alpha1`, the platform that inspired this one, to `midwatch.dev/v1alpha1`. Pure.

That resource, as its CustomResourceDefinition has it (components/manifests of ambient-code/platform and its
predecessor vTeam): prompt (later initialPrompt), displayName, interactive, repos[] with input and output or, before
and after that, url and branch, mainRepoIndex, llmSettings, timeout, autoPushOnComplete, and what its backend added.
Each field that has no counterpart is left out with a warning of one line. `read_documents` and `write_yaml` read and
write the documents; input of any kind takes bounded memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from midwatch.documents import MAX_DEPTH, DocumentError, read_yaml_or_json
from midwatch.kube.environment import is_reserved
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import API_VERSION, KIND, MAX_SECONDS, VARIABLE_NAME, fits
from midwatch.model import Json

OLD_GROUP = "vteam.ambient-code"
_OLD_TIMEOUT = 300
"""The old platform's default timeout in seconds."""
_OLD_BRANCH = "main"
"""The old platform's default branch of an input."""
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
"""Metadata that the API server sets."""
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_WHY_NOT = {
    "spec.llmSettings.temperature": "Claude Code has no such setting",
    "spec.llmSettings.maxTokens": "Claude Code has no such setting",
    "spec.userContext": "who created a session is in the API server's audit log",
    "spec.botAccount": "each session has its own account; put tokens into environment.secrets",
    "spec.activeWorkflow": "add its repository to repos, and name its files in the prompt",
    "spec.project": "the session runs in metadata.namespace",
    "spec.resourceOverrides.storageClass": "use the operator's setting storage_class",
    "spec.resourceOverrides.priorityClass": "it has no counterpart",
    "spec.repos[].autoPush": "autoPushOnComplete applies to all repositories",
    "metadata.ownerReferences": "its owner may not exist",
    "metadata.finalizers": "no controller would remove them",
}


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted document, and warnings of one line each."""

    document: Json
    warnings: tuple[str, ...] = ()


def is_old_session(body: Mapping[str, Any]) -> bool:
    """Return whether a document is a session of the old platform."""
    group = str(body.get("apiVersion") or "").partition("/")[0]
    return group == OLD_GROUP and body.get("kind") == KIND


def convert(body: Mapping[str, Any]) -> Converted:
    """Return the equivalent document. Anything but an old session, or a list of them, stays unchanged.

    Raises:
        SpecRefused: The API server would refuse the result; it names the field.
    """
    items = body.get("items")
    if isinstance(items, list) and str(body.get("kind", "")).endswith("List"):
        return _convert_list(body, items)
    if not is_old_session(body):
        return Converted(dict(body))
    return _Conversion(body).converted()


def _convert_list(body: Mapping[str, Any], items: list[Any]) -> Converted:
    done = [convert(_mapping(item, f"items[{i}]")) for i, item in enumerate(items)]
    is_old = str(body.get("apiVersion") or "").startswith(f"{OLD_GROUP}/")
    head = {"apiVersion": "v1", "kind": "List"} if is_old else {}
    document = {**body, **head, "items": [one.document for one in done]}
    return Converted(document, tuple(line for one in done for line in one.warnings))


@dataclass(slots=True)
class _Conversion:
    """The conversion of one resource."""

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
                f"status ({phase}) is left out: the session runs again once it is applied"
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
                self._warn(f"{location} is left out: {why}")

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
            raise SpecRefused("is not a string", path="metadata.name")
        self._warn_left_out(
            "metadata", {k: v for k, v in rest.items() if k not in _SERVER_MADE}
        )
        return result

    def _annotations(self, given: Any) -> Json:
        """Return annotations without the one that kubectl would compare the new document with."""
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
        """Return prompt and mode. `interactive` defaulted to false with `prompt`, and to true with `initialPrompt`."""
        first, later = rest.pop("prompt", None), rest.pop("initialPrompt", None)
        if first and later:
            self._warn("spec.initialPrompt is left out: spec.prompt is used")
        spec: Json = {"prompt": first or later or ""}
        if not first and rest.get("interactive") is None:
            self._warn(
                "spec.interactive is not set: it becomes true, the old default without spec.prompt"
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
            repo: Json = {"input": self._location(plain, path)}
        else:
            self._warn_left_out(path, plain)
            location = self._location(source, f"{path}.input")
            repo = {"input": {"branch": _OLD_BRANCH, **location}}
        output = rest.pop("output", None)
        if output is not None:
            location = self._location(output, f"{path}.output")
            if location:
                repo["output"] = location
            if not location.get("branch"):
                self._warn(
                    f"{path}.output names no branch: the session's own branch is pushed"
                )
        rest.pop("status", None)  # its result, as in the status
        if rest.get("autoPush") is False:
            del rest["autoPush"]
        self._warn_left_out(path, rest)
        return repo

    def _location(self, given: Any, path: str) -> Json:
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
                f"spec.timeout is not set: it becomes {_OLD_TIMEOUT} seconds, the old default"
            )
            timeout = _OLD_TIMEOUT
        times = {"timeout": self._seconds(timeout, "spec.timeout")}
        if idle is not None:
            times["idleTimeout"] = self._seconds(idle, "spec.inactivityTimeout")
        return times

    def _seconds(self, given: Any, path: str) -> Any:
        """Return seconds within the limits. 0 meant no limit; anything but an integer is refused later."""
        if not isinstance(given, int) or isinstance(given, bool):
            return given
        if 1 <= given <= MAX_SECONDS:
            return given
        self._warn(f"{path} {given} becomes {MAX_SECONDS} seconds, the maximum")
        return MAX_SECONDS

    def _environment(self, given: Any) -> Json:
        path = "spec.environmentVariables"
        result = {}
        for name, value in _mapping(given, path).items():
            if is_reserved(name):
                self._warn(
                    f"{path}.{name} is left out: it is reserved; put keys and tokens into secrets"
                )
            elif not fits(VARIABLE_NAME, name) or not isinstance(value, str):
                self._warn(
                    f"{path}.{name} is left out: not a variable name and a string"
                )
            else:
                result[name] = value
        return {"environment": {"variables": result}} if result else {}

    def _resources(self, given: Any) -> Json:
        """Return equal requests and limits, so that a pod gets exactly these amounts."""
        rest = dict(_mapping(given, "spec.resourceOverrides"))
        amounts = {key: rest.pop(key, None) for key in ("cpu", "memory")}
        result = {key: value for key, value in amounts.items() if value}
        self._warn_left_out("spec.resourceOverrides", rest)
        if not result:
            return {}
        return {"resources": {"requests": result, "limits": dict(result)}}


def _mapping(given: Any, path: str) -> Mapping[str, Any]:
    """Return an object; empty for None. Raises SpecRefused for anything else."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise SpecRefused("is not an object", path=path)
    return given


# ------------------------------------------------------------------ reading YAML and JSON


def read_documents(data: bytes) -> list[Json]:
    """Return the objects in a text, without empty documents. Raises SpecRefused."""
    try:
        documents = read_yaml_or_json(data)
    except DocumentError as error:
        raise SpecRefused(
            f"neither YAML nor JSON: {error.message}", hint=error.hint
        ) from None
    return [
        _checked_document(document) for document in documents if document is not None
    ]


def _checked_document(document: Any) -> Json:
    _check_plain(document, 0)
    if not isinstance(document, dict):
        raise SpecRefused("not a Kubernetes object")
    return document


_SURROGATES = re.compile("[\\ud800-\\udfff]")
_PLAIN = (str, int, float, bool, type(None))


def _check_plain(value: Any, depth: int) -> None:
    """Raise SpecRefused for values that JSON does not have: dates, sets, keys that are numbers."""
    if depth > MAX_DEPTH:
        raise SpecRefused(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise SpecRefused(
                    f"the name {key!r:.50} is not a string", hint="put it into quotes"
                )
            _check_plain(key, depth + 1)
            _check_plain(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            _check_plain(part, depth + 1)
    elif not isinstance(value, _PLAIN) or _is_not_json(value):
        shown = repr(value) if isinstance(value, _PLAIN) else str(value)
        raise SpecRefused(f"{shown:.50} is not a JSON value")


def _is_not_json(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, str) and _SURROGATES.search(value) is not None


# ------------------------------------------------------------------ writing

_BREAKS = re.compile("[\\x85\\u2028\\u2029\\ufeff]")


def write_yaml(documents: Iterable[Json], *, ascii_only: bool = False) -> str:
    """Return documents as YAML for kubectl. Long lines are not wrapped."""
    return yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        width=math.inf,
        allow_unicode=not ascii_only,
    )


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as blocks, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text.strip("\n") else None
    if _BREAKS.search(text):  # PyYAML escapes them only here
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
