"""Which answer a request gets: the first rule that fits it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .answers import Answer
from .exchange import Reply
from .requests import Request

Given = Reply | str
"""A reply; a string is short for an answer with that text."""
Computed = Callable[[Request], Given | Awaitable[Given]]
"""Runs in the server's own thread and event loop."""
Answers = Given | Sequence[Given] | Computed
"""One reply for every call; or one per call, of which the last repeats; or a function."""


@dataclass(frozen=True)
class Rule:
    """Replies for the requests that fit all of the conditions given; without any, for every call.

    Raises ValueError for no answer at all, re.error for a pattern that is none.
    """

    answers: Answers
    model: str | None = None
    contains: str | None = None
    """A part of any text of the prompt, letter by letter."""
    matches: str | None = None
    """A regular expression searched in the prompt, over lines."""
    tools: bool | None = None
    """Whether tools are offered."""
    stream: bool | None = None
    structured: bool | None = None
    """Whether the answer must fit a schema."""
    when: Callable[[Request], bool] | None = None
    path: str = "/v1/messages"
    method: str = "POST"

    def __post_init__(self) -> None:
        if isinstance(self.answers, Sequence) and not isinstance(self.answers, str):
            if not self.answers:
                raise ValueError("a rule needs at least one answer")
        if self.matches is not None:
            re.compile(self.matches)

    def fits(self, request: Request) -> bool:
        asked = (
            (self.path, request.path),
            (self.method, request.method),
            (self.model, request.model),
            (self.tools, bool(request.tools)),
            (self.stream, request.stream),
            (self.structured, request.output_schema is not None),
        )
        if any(wanted is not None and wanted != is_ for wanted, is_ in asked):
            return False
        return self._text_fits(request) and (self.when is None or self.when(request))

    def _text_fits(self, request: Request) -> bool:
        if self.contains is not None and self.contains not in request.prompt:
            return False
        if self.matches is None:
            return True
        return re.search(self.matches, request.prompt, re.DOTALL) is not None


class Script:
    """Rules in order, and how often each has answered."""

    def __init__(self, rules: Sequence[Rule | Answers]) -> None:
        self._rules = [rule if isinstance(rule, Rule) else Rule(rule) for rule in rules]
        self._answered = [0] * len(self._rules)

    async def reply_to(self, request: Request) -> Reply | None:
        """The reply of the first rule that fits; None if there is none."""
        for place, rule in enumerate(self._rules):
            if rule.fits(request):
                turn = self._answered[place]
                self._answered[place] += 1
                return await _reply(rule.answers, request, turn)
        return None


async def _reply(answers: Answers, request: Request, turn: int) -> Reply:
    given: Given | Awaitable[Given]
    if isinstance(answers, (str, Reply)):
        given = answers
    elif isinstance(answers, Sequence):
        given = answers[min(turn, len(answers) - 1)]
    else:
        given = answers(request)
    if inspect.isawaitable(given):
        given = await given
    return Answer(given) if isinstance(given, str) else given
