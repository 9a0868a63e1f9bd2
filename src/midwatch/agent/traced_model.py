"""A model whose calls are recorded as spans."""

from __future__ import annotations

from midwatch.agent.attempt import Model
from midwatch.agent.diagnosis import Prompt
from midwatch.diagnosis_schema import Kind, Reply
from midwatch.telemetry import gen_ai
from midwatch.telemetry.spans import Attributes, Span, Telemetry

_ANSWERS = (Kind.ANSWERED, Kind.ASKED)


class TracedModel:
    """Asks a model, and records each call as a span `chat MODEL`.

    Args:
        model: The model. Its `provider`, where it has one, is that of the settings.
        telemetry: Records the spans. Only with its `content` have they the text of requests and answers.
    """

    def __init__(self, model: Model, telemetry: Telemetry) -> None:
        self.model = model.model
        self._inner = model
        self._telemetry = telemetry
        self.provider = str(getattr(model, "provider", "anthropic"))

    async def ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        """Make one call, as the model does."""
        asked = gen_ai.chat_request(self.provider, self.model, max_tokens)
        with self._telemetry.span(f"chat {self.model}", asked, "client") as span:
            if self._telemetry.content:
                span.set(gen_ai.prompt_content(prompt.system, prompt.messages()))
            reply = await self._inner.ask(prompt, max_tokens)
            self._record(span, reply)
            return reply

    def _record(self, span: Span, reply: Reply) -> None:
        answered: Attributes = {
            "gen_ai.response.model": reply.model or None,
            "gen_ai.response.id": reply.message_id or None,
            "gen_ai.response.finish_reasons": (
                (reply.stop_reason,) if reply.stop_reason else None
            ),
            "midwatch.request_id": reply.request_id,
        }
        span.set({**answered, **gen_ai.usage(reply.usage)})
        if self._telemetry.content and reply.text:
            span.set(gen_ai.answer_content(reply.text, reply.stop_reason))
        if reply.kind not in _ANSWERS:
            span.fail(reply.kind.value, reply.error)
