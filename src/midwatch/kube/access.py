"""How the API server is reached: its address and who we are there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from midwatch.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Access:
    """What a kubeconfig or a service account says. `*_data` is base64 of PEM, the others are files."""

    server: str
    ca_file: Path | None = None
    ca_data: str | None = None
    insecure: bool = False
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    certificate_file: Path | None = None
    certificate_data: str | None = None
    key_file: Path | None = None
    key_data: str | None = field(default=None, repr=False)


def read_access(kubeconfig: Path | None, context: str | None = None) -> Access:
    """How the cluster is reached, for others than us; a token is read from its file now.

    Raises SettingsError, also where it takes a program to log in.
    """
    config = read_config(kubeconfig, context)
    cluster, user = config.cluster, config.user or User()
    if user.exec or user.auth_provider:
        raise SettingsError(
            "its user logs in by a program",
            path="operator.kubeconfig",
            hint="name a kubeconfig with a token or a certificate, or run in the cluster",
        )
    token = user.token
    if user.token_file:
        try:
            token = Path(user.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(
                f"cannot read {user.token_file}: {error}", path="operator.kubeconfig"
            ) from error

    def file(name: str | None) -> Path | None:
        return Path(config.abs_file(name)) if name else None

    return Access(
        server=cluster.server,
        ca_file=file(cluster.certificate_auth),
        ca_data=None if cluster.certificate_auth else cluster.certificate_auth_data,
        insecure=cluster.insecure,
        token=token,
        username=user.username,
        password=user.password,
        certificate_file=None if user.client_cert_data else file(user.client_cert),
        certificate_data=user.client_cert_data,
        key_file=None if user.client_key_data else file(user.client_key),
        key_data=user.client_key_data,
    )


def read_config(kubeconfig: Path | None, context: str | None) -> SingleConfig:
    """By this file, or as the pod that this is. Raises SettingsError."""
    try:
        if kubeconfig is None:
            config = KubeConfig.from_service_account().get()
        else:
            config = KubeConfig.from_file(kubeconfig).get(context)
    except (ConfigError, OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as e:
        where = kubeconfig or "the service account of the pod"
        raise SettingsError(
            f"cannot read {where}: {e}",
            path="operator.kubeconfig",
            hint="name a kubeconfig, or run in a pod with a service account",
        ) from e
    assert config is not None
    return config._replace(user=config.user or User())
