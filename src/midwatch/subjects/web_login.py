"""How the kinds `prometheus` and `alertmanager` log in to their server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, SecretStr, model_validator

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.settings import Group
from midwatch.subjects.http import Target, basic_login
from midwatch.subjects.web_settings import Headers, WebSettings


class BasicAuth(Group):
    username: str
    password: SecretStr


class LoginSettings(WebSettings):
    """A server that asks for a token, or for a user name and a password."""

    headers: Headers = Field(
        default_factory=dict,
        description="Request headers, such as X-Scope-OrgID for a tenant; the values are secret.",
    )
    bearer_token_file: Path | None = Field(
        None, description="A file with the token; read for each observation."
    )
    basic_auth: BasicAuth | None = None

    @model_validator(mode="after")
    def _one_login(self) -> LoginSettings:
        if self.bearer_token_file and self.basic_auth:
            raise ValueError("give bearer_token_file or basic_auth, not both")
        return self


class WebLogin:
    """The headers with which requests of one subject log in.

    Args:
        settings: The settings of the subject.
        target: Its URL, which may have a login too.
        path: The path of the subject in the settings.

    Raises:
        SettingsError: The token file cannot be read, or holds no token.
    """

    def __init__(self, settings: LoginSettings, target: Target, path: str) -> None:
        self._settings = settings
        self._target = target
        self._token = ""
        try:
            self.refresh()
        except ObservationFailed as error:
            raise SettingsError(
                error.message, path=f"{path}.bearer_token_file"
            ) from None

    def refresh(self) -> None:
        """Read the token file again, if there is one. Raises ObservationFailed."""
        path = self._settings.bearer_token_file
        if path is None:
            return
        try:
            token = path.read_bytes()[:65536].decode("ascii").strip()
        except OSError as error:
            raise ObservationFailed(
                f"the token file {path} cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            token = ""
        if not token or not token.isprintable():
            raise ObservationFailed(f"the token file {path} does not hold a token")
        self._token = token

    def headers(self) -> Mapping[str, str]:
        """Return the headers of a request: those of the settings replace those of a login."""
        given = self._settings.headers.items()
        headers = {name.lower(): value.get_secret_value() for name, value in given}
        if self._token:
            return {"authorization": f"Bearer {self._token}", **headers}
        return {**self._static(), **headers}

    @property
    def secrets(self) -> Sequence[str]:
        """Every secret value that a request carries."""
        auth, login = self._settings.basic_auth, self._target.login
        values = [
            self._token,
            login[1] if login else "",
            auth.password.get_secret_value() if auth else "",
            *(value.partition(" ")[2] for value in self._static().values()),
            *self._settings.connection_secrets(),
        ]
        return [value for value in values if value]

    def _static(self) -> Mapping[str, str]:
        auth = self._settings.basic_auth
        if auth is not None:
            return basic_login(auth.username, auth.password.get_secret_value())
        return self._target.login_header()
