"""How a process in a pod finds the API server.

`/var/run/secrets/kubernetes.io/serviceaccount` cannot be there without touching the machine, so the token is written
below the pod's own folder and `KUBECONFIG` points to a file that uses it: lightkube's `KubeConfig.from_env()` takes it
where the service account's folder is missing. `MIDWATCH_OPERATOR__KUBECONFIG`, the setting, says the same. Nothing of
it is there where the token is not mounted.
"""

from __future__ import annotations

from pathlib import Path

from midwatch.model import Json

from .server import ApiServer

VARIABLES = ("KUBECONFIG", "MIDWATCH_OPERATOR__KUBECONFIG")


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
        return found | {name: str(config) for name in VARIABLES}


def _mounted(pod: Json, account: Json) -> bool:
    own = pod["spec"].get("automountServiceAccountToken")
    if own is None:
        own = account.get("automountServiceAccountToken", True)
    return bool(own)
