"""Settings of the changes of watched systems: how long they are kept, which count, and who reports them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from midwatch.setting_group import Group, Name, Seconds

ChangeSender = Literal["github", "gitlab", "argocd"]


class ChangeHookSettings(Group):
    """A sender of webhooks about deployments, at `/hooks/SENDER/NAME`."""

    name: Name = Field(description="Its name in the address; unique.")
    sender: ChangeSender = Field(description="Who writes the body.")
    signing_secrets: list[SecretStr] = Field(
        default=[],
        description="The webhook's secret, best as ${NAME}; several while one is replaced. Without one the sender needs a "
        "bearer token with the scope changes:write.",
    )
    subjects: list[Name] = Field(
        default=[],
        description="The subjects that its deployments change. Empty: those whose `repositories` have the repository of the "
        "delivery, and else what has its labels.",
    )
    environments: list[str] = Field(
        default=[],
        description="Only deployments to these environments; empty for all.",
    )

    @model_validator(mode="after")
    def _with_secrets(self) -> Self:
        if any(not one.get_secret_value().strip() for one in self.signing_secrets):
            raise ValueError("a signing secret is empty")
        return self


class ChangeSettings(Group):
    """What was changed in the watched systems: commits, deployments, settings."""

    keep_for: Seconds = Field(
        30 * 86400.0, ge=3600, description="How long a change is kept."
    )
    window: Seconds = Field(
        86400.0,
        ge=60,
        le=30 * 86400,
        description="How long before the onset of a ticket a change counts for it.",
    )
    shortly: Seconds = Field(
        3600.0,
        ge=60,
        le=30 * 86400,
        description="How long before the onset a change is named first in first aid.",
    )
    most: int = Field(
        20, ge=1, le=200, description="Most changes that are evidence for one ticket."
    )
    poll_interval: Seconds | None = Field(
        120.0,
        ge=5,
        description="Wait between two looks at the repositories of the subjects; null for none.",
    )
    most_commits: int = Field(
        200,
        ge=1,
        le=5000,
        description="Most commits of a branch that one look stores; of the others it stores the number.",
    )
    hooks: list[ChangeHookSettings] = Field(
        default=[], description="Who reports deployments, see below."
    )

    @model_validator(mode="after")
    def _of_one_name(self) -> Self:
        names = [(one.sender, one.name) for one in self.hooks]
        if len(set(names)) < len(names):
            raise ValueError("two hooks of a sender have the same name")
        return self
