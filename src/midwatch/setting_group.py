"""What groups of settings have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Group(BaseModel):
    """A group of settings: frozen, and an unknown name in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
