"""When storage classes bind a claim: at once, or with its first consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midwatch.cluster.errors import ResourceGone
from midwatch.errors import MidwatchError
from midwatch.subjects.kubernetes.cluster_watch import CLAIMS, ClusterWatch

if TYPE_CHECKING:  # it needs the extra `kubernetes`
    from midwatch.cluster.connection import Connection

_PATH = "apis/storage.k8s.io/v1/storageclasses"
_AGAIN = 600.0


class StorageClasses:
    """Reads a class when a claim of it waits, and remembers its binding mode, which cannot change, while there are claims of it.

    Args:
        connection: To the API server.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._late: dict[str, bool] = {}
        self._failed: dict[str, float] = {}

    def waits_for_consumer(self, name: str) -> bool | None:
        """Return whether claims of a class wait for their first consumer; None if it could not be read."""
        return self._late.get(name)

    async def read(self, watch: ClusterWatch) -> None:
        """Read the classes of the claims that wait."""
        wanted = {
            one.storage_class for one in watch.all(CLAIMS) if one.phase == "Pending"
        }
        named = {one.storage_class for one in watch.all(CLAIMS)}
        for name in (self._late.keys() | self._failed.keys()) - named:
            self._late.pop(name, None)
            self._failed.pop(name, None)
        now = watch.monotonic()
        for name in sorted(wanted - self._late.keys()):
            if now - self._failed.get(name, -_AGAIN) < _AGAIN:
                continue
            if not name:  # it waits for a volume that somebody makes
                self._late[name] = False
                continue
            try:
                found = await self._connection.get(
                    f"{_PATH}/{name}", f"read the storage class {name}"
                )
            except ResourceGone:
                self._late[name] = False
            except MidwatchError:
                self._failed[name] = now
            else:
                self._late[name] = (
                    found.get("volumeBindingMode") == "WaitForFirstConsumer"
                )
