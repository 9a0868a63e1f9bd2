"""Local folders that stand for a pod's volumes.

A container's `/workspace` cannot be mounted without touching the machine, so it becomes a folder below the
kubelet's own, and environment values that point into it are rewritten (`environments.relocated`). That folder's path
is the same for all pods, as `/workspace` is, because transcripts depend on it. What is in it is the pod's own:
the pod's volume is bound there in a mount namespace of the process. Where the machine allows none, each session has
a path of its own, the folder there is the volume, and it is moved aside when the session's next pod comes; then
a process of a lost node that still runs sees the next pod's files.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from midwatch.kube.names import SESSION_LABEL
from midwatch.model import Json

from .environments import secret_data
from .objects import Objects

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
                command, capture_output=True, timeout=10, check=False
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
