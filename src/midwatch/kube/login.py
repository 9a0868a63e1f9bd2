"""Read a kubeconfig or the pod's service account, and open the HTTP clients of a login."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import httpx2
import yaml
from lightkube import AsyncClient
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from midwatch.errors import SettingsError

_PATH = "operator.kubeconfig"
_PROGRAMS = tuple(
    f"client.authentication.k8s.io/{version}" for version in ("v1alpha1", "v1beta1")
)
"""Protocols of credential programs (`exec` in a kubeconfig) that the client can run."""


class Login:
    """The HTTP clients of one login.

    Args:
        config: Address and credentials.
        timeout: Seconds for each request.

    Raises:
        SettingsError: The configuration cannot be used.
    """

    def __init__(self, config: SingleConfig, timeout: float) -> None:
        self.config = config
        self._timeout = httpx2.Timeout(timeout)
        try:
            self.client = AsyncClient(config, timeout=self._timeout, trust_env=False)
        except (ConfigError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise SettingsError(
                f"cannot connect to {config.cluster.server}: {error}",
                path=_PATH,
                hint="check the server's address, certificates and keys",
            ) from error

    @cached_property
    def streams(self) -> httpx2.AsyncClient:
        """The client for watches. Each watch keeps a connection open, so their number is not limited."""
        params = ConnectionParams(timeout=self._timeout, trust_env=False)
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(**params.httpx_params(self.config), limits=limits)

    async def close(self) -> None:
        await self.client.close()
        if "streams" in vars(self):
            await self.streams.aclose()


def read_config(kubeconfig: Path | None, context: str | None) -> SingleConfig:
    """Return the login of a kubeconfig, or of the pod's service account without one. Raises SettingsError."""
    try:
        if kubeconfig is None:
            config = KubeConfig.from_service_account().get()
        else:
            config = KubeConfig.from_file(kubeconfig).get(context)
    except (ConfigError, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as e:
        where = kubeconfig or "the service account of the pod"
        raise SettingsError(
            f"cannot read {where}: {e}",
            path=_PATH,
            hint="name a kubeconfig, or run in a pod with a service account",
        ) from e
    assert config is not None
    user = config.user or User()
    if user.auth_provider or (user.exec and user.exec.apiVersion not in _PROGRAMS):
        raise SettingsError(
            "its user logs in by an unsupported program",
            path=_PATH,
            hint="name a kubeconfig with a token or a certificate, or run in the cluster",
        )
    return config._replace(user=user)
