"""What a container is here: a local process, with an image, an environment, volumes and credentials.

A container's `/workspace` cannot be mounted without touching the machine, so it becomes a folder below the
kubelet's own, and environment values that point into it are rewritten (`relocated`). That folder's path
is the same for all pods, as `/workspace` is, because transcripts depend on it. What is in it is the pod's own:
the pod's volume is bound there in a mount namespace of the process. Where the machine allows none, each session has
a path of its own, the folder there is the volume, and it is moved aside when the session's next pod comes; then
a process of a lost node that still runs sees the next pod's files.

`/var/run/secrets/kubernetes.io/serviceaccount` cannot be there either, so the token is written
below the pod's own folder and `KUBECONFIG` points to a file that uses it: lightkube's `KubeConfig.from_env()` takes it
where the service account's folder is missing. `MIDWATCH_OPERATOR__KUBECONFIG`, the setting, says the same. Nothing of
it is there where the token is not mounted.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import psutil

from midwatch.kube.rules import SESSION_LABEL
from midwatch.model import Json

from ..processes import Midwatch, start
from ..scripts import Mounts
from .apiserver import ApiServer, Objects

PYTHON = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Image:
    """`environment` comes beside a HOME of the pod's own; `entrypoint` and `command` are ENTRYPOINT and CMD."""

    environment: Mapping[str, str]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def argv(self, container: Json) -> list[str]:
        """What is run. A container's own command leaves out the image's CMD as well, as in Kubernetes."""
        if "command" in container:
            return [*container["command"], *container.get("args", ())]
        return [*self.entrypoint, *container.get("args", self.command)]


IMAGE = Image(
    {"PATH": f"{PYTHON}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
    # As our Dockerfile has it, but for tini: `Process` sees to what is left behind.
    ("midwatch",),
    ("--help",),
)


class Process:
    """Started at once. Raises OSError where it cannot be. With `mounts` it is `midwatch`, forked."""

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        mounts: Mounts | None = None,
    ) -> None:
        with log.open("ab") as sink:
            self._child: Midwatch | subprocess.Popen[bytes] = (
                start(argv, cwd=folder, env=environment, stdout=sink, stderr=sink)
                if mounts is None
                else Midwatch(
                    argv[1:],
                    cwd=folder,
                    env=environment,
                    stdout=sink,
                    stderr=sink,
                    mounts=mounts,
                )
            )
        self.pid = self._child.pid
        self._family: set[psutil.Process] = set()
        self._done = False

    def code(self) -> int | None:
        """The exit code as a container has it (137 for SIGKILL); None while it runs."""
        code = self._child.poll()
        return 128 - code if code is not None and code < 0 else code

    def look(self) -> None:
        """Remember the processes below it: what outlives it ends with it, as in a container."""
        with contextlib.suppress(psutil.Error):
            self._family.update(psutil.Process(self.pid).children(recursive=True))

    def terminate(self) -> None:
        """SIGTERM, to the first process only, as a container's."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, to everything. The exit code is known when this returns."""
        self.look()
        self.clean_up()

    def clean_up(self) -> None:
        """End what the first process has left behind, and that itself if it still runs."""
        if self._done:
            return
        self._child.kill()  # it may not lead its group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for relative in self._family:
            with contextlib.suppress(psutil.Error):
                relative.kill()
        self._child.wait(10)
        self._done = True


# ------------------------------------------------------------------ the environment

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.][-A-Za-z0-9_.]*)\)")


class ConfigError(Exception):
    """`CreateContainerConfigError`: the container cannot be made until something is there."""


def environment(objects: Objects, pod: Json, container: Json) -> dict[str, str]:
    """All variables of the container. Raises ConfigError."""
    namespace = pod["metadata"]["namespace"]
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found.update(_all_of(objects, namespace, source))
    for variable in container.get("env", ()):
        if "valueFrom" in variable:
            value = _one_from(objects, pod, variable["valueFrom"])
        else:
            value = expanded(variable.get("value", ""), found)
        if value is not None:
            found[variable["name"]] = value
    return found


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` is replaced where the name is known, and `$$` is one dollar: so does Kubernetes."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def relocated(value: str, folders: Mapping[str, str]) -> str:
    """A path below a mount, as the local folder that stands for it; all else stays.

    Only a value that is such a path as a whole, without white space, is rewritten. `/tmp` is left alone: paths that tests hand in
    are below it.
    """
    if not value or len(value.split()) != 1:
        return value
    path = PurePosixPath(value)
    for mount in sorted(folders, key=len, reverse=True):
        if mount != "/tmp" and path.is_relative_to(mount):
            rest = value[len(mount.rstrip("/")) :]
            return folders[mount] + rest
    return value


def secret_data(secret: Json) -> dict[str, bytes]:
    return {k: base64.b64decode(v) for k, v in (secret.get("data") or {}).items()}


def _all_of(
    objects: Objects, namespace: str, source: Json
) -> Iterator[tuple[str, str]]:
    prefix = source.get("prefix", "")
    for name, plural in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
        reference = source.get(name)
        if reference:
            data = _data(objects, plural, namespace, reference) or {}
            yield from ((prefix + key, value) for key, value in data.items())


def _data(
    objects: Objects, plural: str, namespace: str, reference: Json
) -> dict[str, str] | None:
    """Keys and values as text; None if it is missing and may be. Raises ConfigError."""
    found = objects.find(plural, namespace, reference["name"])
    if found is None:
        if reference.get("optional"):
            return None
        kind = plural.removesuffix("s")
        raise ConfigError(f'{kind} "{reference["name"]}" not found')
    if plural == "configmaps":
        return dict(found.get("data") or {})
    return {k: v.decode("utf-8", "replace") for k, v in secret_data(found).items()}


def _one_from(objects: Objects, pod: Json, source: Json) -> str | None:
    namespace = pod["metadata"]["namespace"]
    for name, plural, kind in (
        ("secretKeyRef", "secrets", "Secret"),
        ("configMapKeyRef", "configmaps", "ConfigMap"),
    ):
        reference = source.get(name)
        if reference:
            data = _data(objects, plural, namespace, reference)
            if data is not None and reference["key"] in data:
                return data[reference["key"]]
            if reference.get("optional"):
                return None
            full = f"{namespace}/{reference['name']}"
            raise ConfigError(f"couldn't find key {reference['key']} in {kind} {full}")
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    raise ConfigError(f"{next(iter(source), 'nothing')} is not understood here")


def field(pod: Json, path: str) -> str:
    """A field of the pod as the downward API gives it. Raises ConfigError."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    match = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if match:
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    known = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP", ""),
        "status.hostIP": status.get("hostIP", ""),
    }
    if path not in known:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return str(known[path])


# ------------------------------------------------------------------ the volumes

_PREFIXES = (
    ("unshare", "--mount", "--propagation", "private", "--"),
    ("unshare", "--user", "--map-current-user", "--keep-caps", "--mount", "--"),
)
_BIND = """
while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 125; shift 2; done
shift; mkdir -p "$1" && cd "$1" || exit 125; shift; exec "$@"
"""
"""Binds pairs of folders, goes to the working directory (in what is bound), becomes the program."""


class NotMounted(Exception):
    """A volume is not there (yet); the pod waits. `event` is said about it."""


@cache
def namespace_prefix() -> tuple[str, ...]:
    """How to start a program in a mount namespace of its own; empty where that is not allowed."""
    script = 'mkdir -p "$0" && mount -t tmpfs none "$0"'
    for prefix in _PREFIXES:
        command = [*prefix, "sh", "-c", script, "/tmp"]
        try:
            tried = subprocess.run(
                command, capture_output=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if tried.returncode == 0:
            return prefix
    return ()


class Folders:
    """All folders of one kubelet. The pods of one session share a path."""

    def __init__(self, root: Path, objects: Objects) -> None:
        self._root, self._objects = root, objects

    def own(self, pod: Json) -> Path:
        """What belongs to this pod only."""
        made: Path = self._root / "pods" / pod["metadata"]["uid"]
        made.mkdir(parents=True, exist_ok=True)
        return made

    def volumes(self, pod: Json) -> dict[str, Path]:
        """Each volume's name and folder, filled. Raises NotMounted."""
        return {
            volume["name"]: self._volume(pod, volume)
            for volume in pod["spec"].get("volumes", ())
        }

    def mounts(self, pod: Json, container: Json) -> dict[str, Path]:
        """Mount path in the container -> the real folder."""
        volumes = self.volumes(pod)
        found: dict[str, Path] = {}
        for mount in container.get("volumeMounts", ()):
            folder = volumes[mount["name"]] / str(mount.get("subPath", ""))
            folder.mkdir(parents=True, exist_ok=True)
            found[mount["mountPath"].rstrip("/") or "/"] = folder
        return found

    def placed(self, pod: Json, mounts: Mapping[str, Path]) -> dict[str, str]:
        """Mount path -> where the process sees it, ready for `command`."""
        places: dict[str, str] = {}
        for path, folder in mounts.items():
            place = self._stable(pod) / path.lstrip("/")
            if namespace_prefix():
                place.mkdir(parents=True, exist_ok=True)
            else:
                self._swap(place, folder)
            places[path] = str(place)
        return places

    def command(
        self,
        argv: list[str],
        working: Path,
        mounts: Mapping[str, Path],
        places: Mapping[str, str],
    ) -> list[str]:
        """The command line that binds the folders before it becomes the program."""
        prefix = namespace_prefix()
        if not prefix or not mounts:
            working.mkdir(parents=True, exist_ok=True)
            return argv
        pairs = [p for at, folder in mounts.items() for p in (str(folder), places[at])]
        script = ["sh", "-c", _BIND, "bind", *pairs, "--", str(working)]
        return [*prefix, *script, *argv]

    def forked(
        self, mounts: Mapping[str, Path], places: Mapping[str, str]
    ) -> Mounts | None:
        """What `command` binds, for a forked process; None where nothing is bound."""
        prefix = namespace_prefix()
        if not prefix or not mounts:
            return None
        binds = ((str(folder), places[at]) for at, folder in mounts.items())
        return Mounts(tuple(binds), as_user=prefix != _PREFIXES[0])

    def _stable(self, pod: Json) -> Path:
        if namespace_prefix():
            return self._root / "at"
        meta = pod["metadata"]
        name = str((meta.get("labels") or {}).get(SESSION_LABEL) or meta["name"])
        return self._root / "at" / str(meta["namespace"]) / name

    def _swap(self, place: Path, folder: Path) -> None:
        """Without namespaces: the place becomes the volume, what was there goes its own way."""
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            aside = self._root / "aside" / f"{place.name}-{os.urandom(4).hex()}"
            aside.parent.mkdir(exist_ok=True)
            place.rename(aside)
        if self._root / "pods" in folder.parents:
            folder.rename(place)
            folder.symlink_to(place)
        else:
            place.symlink_to(folder)

    def _volume(self, pod: Json, volume: Json) -> Path:
        if "persistentVolumeClaim" in volume:
            return self._claim(pod, volume["persistentVolumeClaim"]["claimName"])
        folder = self.own(pod) / "volumes" / _safe(volume["name"])
        folder.mkdir(parents=True, exist_ok=True)
        if "secret" in volume:
            self._write_secret(pod, volume, folder)
        return folder

    def _claim(self, pod: Json, name: str) -> Path:
        namespace = pod["metadata"]["namespace"]
        claim = self._objects.find("persistentvolumeclaims", namespace, name)
        if claim is None:
            raise NotMounted(f'persistentvolumeclaim "{name}" not found')
        folder: Path = (
            self._root / "claims" / namespace / f"{name}.{claim['metadata']['uid'][:8]}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        if claim["status"].get("phase") != "Bound":
            bound = {"status": {"phase": "Bound"}}
            self._objects.merge(
                "persistentvolumeclaims", namespace, name, bound, sub="status"
            )
        return folder

    def _write_secret(self, pod: Json, volume: Json, folder: Path) -> None:
        source, namespace = volume["secret"], pod["metadata"]["namespace"]
        secret = self._objects.find("secrets", namespace, source["secretName"])
        if secret is None:
            if source.get("optional"):
                return
            raise NotMounted(
                f'MountVolume.SetUp failed for volume "{volume["name"]}" :'
                f' secret "{source["secretName"]}" not found'
            )
        data = secret_data(secret)
        items = source.get("items") or [{"key": key, "path": key} for key in data]
        for item in items:
            target = folder / item["path"].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data[item["key"]])
            target.chmod(item.get("mode", source.get("defaultMode", 0o644)))


def _safe(name: str) -> str:
    return re.sub(r"[^-a-z0-9]", "_", name)


# ------------------------------------------------------------------ the API server, as seen from a pod

KUBECONFIG_VARIABLES = ("KUBECONFIG", "MIDWATCH_OPERATOR__KUBECONFIG")


class Credentials:
    """Gives out tokens of one server."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def of(self, pod: Json, folder: Path) -> dict[str, str]:
        """The variables; they are there for every pod, the files for one with a token."""
        found = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._server.port),
        }
        namespace = pod["metadata"]["namespace"]
        name = pod["spec"].get("serviceAccountName", "default")
        account = self._server.objects.find("serviceaccounts", namespace, name)
        if account is None or not _mounted(pod, account):
            return found
        uid = pod["metadata"]["uid"]
        token = self._server.token_for(namespace, name, pod_uid=uid)
        place = folder / "serviceaccount"
        place.mkdir(exist_ok=True)
        (place / "token").write_text(token)
        (place / "namespace").write_text(namespace)
        config = self._server.kubeconfig(place / "kubeconfig", token, namespace)
        return found | {name: str(config) for name in KUBECONFIG_VARIABLES}


def _mounted(pod: Json, account: Json) -> bool:
    own = pod["spec"].get("automountServiceAccountToken")
    if own is None:
        own = account.get("automountServiceAccountToken", True)
    return bool(own)
