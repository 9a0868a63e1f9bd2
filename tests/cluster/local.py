"""Midwatch as it runs in a cluster, on this machine: API server, kubelet, operator, content proxy, all real but the nodes.

::

    with LocalCluster(folder, api_url) as cluster:
        cluster.create("fix", {"prompt": "Mend it.", "repos": [{"input": {"url": url}}]})
        body = cluster.until("fix", lambda body: phase_of(body).terminal)

The operator and the content proxy are processes of their own, as are the runners that the kubelet starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from midwatch.content.tokens import issue
from midwatch.kube.crd import crd
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import API_VERSION, KIND, PLURAL
from midwatch.model import Json

from ..processes import PROGRAM, Midwatch, start
from .apiserver import ApiServer
from .kubelet import ProcessKubelet

KEY = "sk-ant-scripted-0123456789"
SYSTEM, TEAM = "midwatch", "team"
"""The namespaces of the operator and of the sessions."""
_ACCOUNT = "midwatch-operator"
_PATIENCE = 90.0


class Daemon:
    """One `midwatch` process, or another one of ours by its `code`, that can be killed and started again. Its
    output is in `log`. Where `forked`, it is forked from one that has imported everything.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        code: str = "from midwatch.cli.main import main; main()",
        forked: bool = False,
    ) -> None:
        self.log = folder / f"{name}.log"
        self.process: Midwatch | subprocess.Popen[bytes] | None = None
        self._command = (
            [PROGRAM, *command] if forked else [sys.executable, "-c", code, *command]
        )
        self._environ = {"PATH": os.defpath, "HOME": str(folder), **environ}
        self._folder = folder

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = start(
                self._command,
                cwd=self._folder,
                env=self._environ,
                stdout=log,
                stderr=log,
            )

    def wait_for(self, text: str) -> None:
        """Return when its log has this text. Raises TimeoutError."""
        end = time.monotonic() + _PATIENCE
        while text not in self.log.read_text("utf-8", "replace"):
            if time.monotonic() > end:
                raise TimeoutError(f"{text!r} is not in {self.log.read_text()}")
            time.sleep(0.05)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with this signal, and return its exit code. Raises TimeoutExpired."""
        assert self.process is not None, "it was never started"
        self.process.send_signal(number)
        return self.process.wait(_PATIENCE)

    def restart(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.end(number)
        self.start()

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        try:
            self.end()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LocalCluster:
    """`api_url` is where the Claude API is. `settings` go over the operator's own, `variables` are those of
    every session; `rules` are the operator's rights (any, without them). Where `forked`, the processes are forked from
    one that has imported everything, which costs a tenth of a start.
    """

    def __init__(
        self,
        folder: Path,
        api_url: str,
        *,
        settings: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
        rules: Sequence[Json] | None = None,
        api_key: str = KEY,
        forked: bool = False,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.server = ApiServer(rbac=True)
        self.kubelet = ProcessKubelet(self.server, folder / "node", forked=forked)
        self._rules = rules
        self._forked = forked
        self._api_key = api_key
        self._port = _free_port()
        self.content_url = f"http://127.0.0.1:{self._port}"
        self._key = folder / "content.key"
        self._settings = self._operator_settings(api_url, variables) | dict(
            settings or {}
        )
        self._stack = contextlib.ExitStack()
        self.content = self._content()
        self.operator: Daemon

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.server)
            self._install()
            stack.enter_context(self.kubelet)
            self._key.write_text(secrets.token_hex(32), "ascii")
            self._key.chmod(0o600)
            stack.callback(self.content.stop)
            self.content.start()
            self.operator = self.another_operator("operator")
            stack.callback(self.operator.stop)
            self.operator.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def another_operator(self, name: str) -> Daemon:
        """An operator with the same settings and rights, not yet started. Whoever starts it stops it."""
        token = self.server.token_for(SYSTEM, _ACCOUNT) if self._rules else None
        kubeconfig = self.server.kubeconfig(self.folder / f"{name}.kubeconfig", token)
        file = self.folder / f"{name}.json"
        operator = self._settings | {"kubeconfig": str(kubeconfig)}
        file.write_text(json.dumps({"operator": operator}), "utf-8")
        command = ("--config", str(file), "kube", "operator")
        return Daemon(self.folder, name, command, {}, forked=self._forked)

    # -------------------------------------------------------------- sessions

    def create(self, name: str, spec: Mapping[str, Any]) -> Json:
        """Create a session. Raises Refused as the API server does."""
        body: Json = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": TEAM},
            "spec": dict(spec),
        }
        return self.server.objects.create(body)

    def get(self, name: str) -> Json | None:
        return self.server.objects.find(PLURAL, TEAM, name)

    def change(self, name: str, **spec: Any) -> None:
        """Change fields of its spec."""
        self.server.objects.merge(PLURAL, TEAM, name, {"spec": spec})

    def delete(self, name: str) -> None:
        self.server.objects.delete(PLURAL, TEAM, name)

    def until(
        self, name: str, true: Callable[[Json | None], Any], timeout: float = 60.0
    ) -> Json | None:
        """Wait for the resource to be so. Raises TimeoutError, with what it is instead and the logs."""
        try:
            return self.server.objects.wait(PLURAL, TEAM, name, true, timeout)
        except TimeoutError:
            raise TimeoutError(self._story(name)) from None

    def _story(self, name: str) -> str:
        status = (self.get(name) or {}).get("status")
        pods = [self.kubelet.output(pod) for pod in self.kubelet.pods(TEAM, name)]
        logs = [self.operator.log.read_text()[-3000:], *pods]
        return "\n".join([f"{name}: {json.dumps(status, indent=1)}", *logs])

    def saved_file(self, body: Json, path: str) -> bytes | None:
        """A file as the content proxy has it, such as `workspace/shop/main.py`; None without it."""
        resource = read_resource(body)
        key = self._key.read_text("ascii").encode()
        token = issue(key, resource.folder, now=datetime.now(UTC))
        answer = httpx2.get(
            f"{self.content_url}/content/file",
            params={"path": path},
            headers={"authorization": f"Bearer {token}"},
            timeout=_PATIENCE,
        )
        return answer.content if answer.status_code == 200 else None

    # -------------------------------------------------------------- what it is made of

    def _operator_settings(
        self, api_url: str, variables: Mapping[str, str] | None
    ) -> dict[str, Any]:
        return {
            "image": "midwatch:testing",
            "api_key_secret": {"name": "anthropic"},
            "base_url": api_url,
            "variables": dict(variables or {}),
            "content_url": self.content_url,
            "content_key_file": str(self._key),
            "port": None,
        }

    def _content(self) -> Daemon:
        environ = {
            "MIDWATCH_CONTENT__ROOT": str(self.folder / "volume"),
            "MIDWATCH_CONTENT__PORT": str(self._port),
            "MIDWATCH_CONTENT__KEY_FILE": str(self._key),
        }
        command = ("content", "serve")
        return Daemon(self.folder, "content", command, environ, forked=self._forked)

    def _install(self) -> None:
        objects = self.server.objects
        objects.create(crd())
        for name in (SYSTEM, TEAM):
            space = {"apiVersion": "v1", "kind": "Namespace"}
            objects.create(space | {"metadata": {"name": name}})
        objects.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "anthropic", "namespace": TEAM},
                "stringData": {"ANTHROPIC_API_KEY": self._api_key},
            }
        )
        if self._rules:
            self._grant(self._rules)

    def _grant(self, rules: Sequence[Json]) -> None:
        group = "rbac.authorization.k8s.io"
        subject = {"kind": "ServiceAccount", "name": _ACCOUNT, "namespace": SYSTEM}
        for one in (
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": _ACCOUNT, "namespace": SYSTEM},
            },
            {
                "apiVersion": f"{group}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": _ACCOUNT},
                "rules": list(rules),
            },
            {
                "apiVersion": f"{group}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": _ACCOUNT},
                "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": _ACCOUNT},
                "subjects": [subject],
            },
        ):
            self.server.objects.create(one)

    def wait_for_content(self) -> None:
        """Return when the content proxy answers. Raises TimeoutError."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), 1.0).close()
                return
            time.sleep(0.05)
        raise TimeoutError(f"no content proxy: {self.content.log.read_text()}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
    return port
