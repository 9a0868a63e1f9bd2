"""The tools of a MariaDB or MySQL server: what Claude may ask it in an investigation."""

from __future__ import annotations

from collections.abc import Sequence

from midwatch.subjects.mysql.settings import MysqlSettings
from midwatch.subjects.tools import Tool


class MysqlTools:
    """The tools of one server."""

    def __init__(self, settings: MysqlSettings) -> None:
        self._settings = settings

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        return ()
