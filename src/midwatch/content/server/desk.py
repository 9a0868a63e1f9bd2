"""What every request meets: who asks, for which folder, and whether it is their turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from midwatch.content.errors import TokenRefused
from midwatch.content.server.answers import RequestRefused, TooBusy
from midwatch.content.server.changes import Changes
from midwatch.content.server.keys import Keys
from midwatch.content.server.store import ContentStore
from midwatch.content.server.tally import Tally
from midwatch.content.server.workers import Turns, Workers
from midwatch.content.tokens import Grant, verify
from midwatch.lifecycle import Clock
from midwatch.settings import ContentSettings


@dataclass(slots=True)
class Desk:
    """What the handlers share."""

    store: ContentStore
    settings: ContentSettings
    keys: Keys
    clock: Clock
    work: Workers
    changes: Changes = field(default_factory=Changes)
    tally: Tally = field(default_factory=Tally)
    streams: Turns = field(init=False)
    commits: Turns = field(init=False)

    def __post_init__(self) -> None:
        self.streams = Turns(self.settings.max_streams)
        # One of a folder: the others would wait for its lock in threads that all need.
        self.commits = Turns(self.settings.max_streams, of_one=1)

    def grant(self, request: Request) -> Grant:
        """Raises TokenRefused."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise TokenRefused("there is no token", hint="send Authorization: Bearer")
        return verify(self.keys(), token.strip(), now=self.clock.now())

    def folder(self, request: Request, *, write: bool) -> str:
        """The folder in the address, if the token allows it. Raises TokenRefused, RequestRefused (403)."""
        grant = self.grant(request)
        folder = "{namespace}/{name}".format(**request.path_params)
        request.state.folder = folder
        # The names in a grant were checked: what is none of them never becomes a path.
        if not (grant.may_write(folder) if write else grant.may_read(folder)):
            raise RequestRefused(
                403,
                f"the token is not for {'writing' if write else 'reading'} this folder",
                hint="each session has a token of its own",
            )
        return folder

    async def turn(self, request: Request, turns: Turns, folder: str) -> None:
        """Wait for a turn, which ends when all of the answer is sent. Raises TooBusy."""
        await request.state.held.enter_async_context(turns.turn(folder))

    def check_waiting(self) -> None:
        """Raises TooBusy."""
        if len(self.changes) >= self.settings.max_waiting:
            raise TooBusy("too many wait for a change", retry_after=5.0)
