"""One session, one step on: plan, carry out, plan again, until there is nothing to do."""

from __future__ import annotations

from collections import Counter
from typing import Literal, get_args

from midwatch.errors import MidwatchError, PermanentError, TemporaryError
from midwatch.kube.actions import Action, Hold, Look, Plan
from midwatch.kube.errors import (
    OriginNotEnded,
    ResourceGone,
    SpecImpossible,
    WriterOutdated,
)
from midwatch.kube.operator.carry import Hands, may_pass, reason_of_refusal
from midwatch.kube.operator.index import Key
from midwatch.kube.operator.queue import Queue
from midwatch.kube.plan import plan
from midwatch.kube.refusing import impossible, refusal
from midwatch.kube.seen import Seen

ROUNDS = 10
"""Plans in a row for one session; it takes four. What is not settled then waits for its next turn."""
Failure = Literal["outdated", "temporary", "permanent", "unexpected"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
PASSING = 3
"""Failures in a row after which a refusal that may pass is told in the resource: a quarter of a minute."""


class Follower:
    """Follows one session at a time; `run` may run several times at once. `failures` counts them by kind."""

    def __init__(self, hands: Hands, queue: Queue) -> None:
        self._hands = hands
        self._queue = queue
        self._log = hands.log
        self.failures = Counter[str]()

    async def run(self) -> None:
        """Take what is next and follow it, for ever."""
        while True:
            key = await self._queue.take()
            try:
                await self._guarded(key)
            finally:
                self._queue.done(key)

    async def _guarded(self, key: Key) -> None:
        session = "/".join(key)
        try:
            await self.follow(key)
        except ResourceGone as error:
            self._hands.index.drop(key, "session")
            self._queue.worked(key)
            self._log.info("gone", session=session, why=error.message)
        except WriterOutdated as error:
            self._log.info("outdated", session=session, why=error.message)
            self._failed("outdated", key)
        except OriginNotEnded as error:  # nothing is wrong: it waits for another
            wait = self._queue.failed(key)
            self._log.info("waits", session=session, why=error.message, wait=wait)
        except TemporaryError as error:
            wait = self._failed("temporary", key, error.retry_after or 0.0)
            self._log.warning("failed", session=session, error=error.line(), wait=wait)
        except PermanentError as error:
            wait = self._failed("permanent", key)
            self._log.error("refused", session=session, error=error.line(), wait=wait)
        except Exception:  # the outermost guard: a session that trips us stops no other
            wait = self._failed("unexpected", key)
            self._log.exception("failed", session=session, wait=wait)

    def _failed(self, kind: Failure, key: Key, at_least: float = 0.0) -> float:
        self.failures[kind] += 1
        return self._queue.failed(key, at_least)

    async def follow(self, key: Key) -> None:
        """Bring a session as far as it goes now. Raises what could not be told in the resource."""
        done: set[type[Action]] = set()
        for _ in range(ROUNDS):
            seen = self._seen(key, done)
            if seen is None:
                return
            next_ = plan(seen, self._hands.settings, self._hands.clock.now())
            if not next_.actions:
                return self._settled(key, next_)
            await self._carry(seen, next_)
            done |= {type(action) for action in next_.actions}
        raise TemporaryError("it does not settle")

    def _seen(self, key: Key, done: set[type[Action]]) -> Seen | None:
        """What is known; of what was done for it follows how new that is."""
        known = self._hands.index.get(key)
        if known is None:
            return None
        # Holding a resource back answers with the resource as it is then.
        return known.seen(fresh=Look in done, current=Hold in done)

    def _settled(self, key: Key, last: Plan) -> None:
        self._queue.worked(key)
        if last.done:
            self._hands.index.drop(key, "session")
        elif last.again is not None:
            self._queue.later(key, max(0.05, last.again))

    async def _carry(self, seen: Seen, next_: Plan) -> None:
        for action in next_.actions:
            try:
                await self._hands.carry(seen, action)
            except (ResourceGone, WriterOutdated):
                raise
            except SpecImpossible as error:
                return await self._end(seen, error)
            except PermanentError as error:
                await self._refuse(seen, error)
                raise

    async def _end(self, seen: Seen, error: SpecImpossible) -> None:
        """Trying again would be for ever: the session is over before it began."""
        for action in impossible(seen, reason_of_refusal(error), error.line()):
            await self._hands.carry(seen, action)

    async def _refuse(self, seen: Seen, error: MidwatchError) -> None:
        """Say in the resource why it goes no further, once that is sure."""
        if may_pass(error) and self._queue.failures(seen.resource.key) < PASSING:
            return
        for action in refusal(seen, reason_of_refusal(error), error.line()):
            try:
                await self._hands.carry(seen, action)
            except (PermanentError, TemporaryError) as also:
                self._log.warning("not told", error=also.line())
                return
