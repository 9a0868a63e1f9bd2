"""How the API server is reached: its address and who we are there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


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
