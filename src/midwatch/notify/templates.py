"""Templates of messages: Jinja2 in a sandbox that can show values and nothing else.

A template sees frozen values. It can loop over them and choose; it cannot call their methods, reach Python's internals or
build texts that grow with each step, and what it writes ends at a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from midwatch.errors import PermanentError, SettingsError
from midwatch.notify.formats import PLAIN, Format, Safe
from midwatch.text import one_line
from midwatch.units import format_count, format_duration

if TYPE_CHECKING:
    from jinja2 import Template

LONGEST_OUTPUT = 60_000
"""Characters that a template can write."""
_DEEPEST_LOOP = 2
_LOOP = frozenset({"index", "index0", "first", "last", "length"})
_FORBIDDEN = (
    "Macro CallBlock FilterBlock AssignBlock Import FromImport Include Extends Block Concat Add Mul Pow Mod FloorDiv"
    " Div Sub Slice"
).split()

TITLE = (
    "{{ severity|upper if status != 'resolved' else 'RESOLVED' if tickets[0].status == 'resolved' else 'JOINED' }} {{ tickets[0].subject }}: {{ tickets[0].message }}"
    "{% if tickets|length > 1 %} (and {{ (tickets|length)|count_but_one('other ticket') }}){% endif %}"
)
BODY = """\
{% for event in events %}{% if event.name in ('resolved', 'acknowledged', 'held_too_long', 'escalated', 'joined', 'added') %}\
#{{ event.ticket }} {{ event.text }}{% if event.by %} by {{ event.by }}{% endif %}{% if event.why %}: {{ event.why }}{% endif %}

{% endif %}{% endfor %}\
{% for ticket in tickets %}{% if loop.index <= 10 %}\
{{ link(ticket.url, '#', ticket.id) }} {{ bold(ticket.message) }}
{{ ticket.severity }}, {{ ticket.status }}, {{ ticket.subject }} {{ ticket.invariant }} {{ ticket.component }}, \
since {{ ticket.opened_at|time }}{% if ticket.flapping %}, flapping{% endif %}

{% endif %}{% endfor %}\
{% if tickets|length > 10 %}and more: {{ tickets|length }} tickets in all
{% endif %}\
{% if status != 'resolved' %}\
{% set found = diagnosis if diagnosis else first_aid %}\
{% if found %}\
{{ bold('Diagnosis' if diagnosis else 'First aid') }}{% if found.confidence %} ({{ found.verdict }}, confidence {{ found.confidence }}){% endif %}

{% if found.error %}{{ found.error }}
{% endif %}\
{{ found.cause or found.summary }}
{% for action in found.actions %}\
{{ loop.index }}. {{ action.what }}
{% for command in action.commands %}   {{ code(command) }}
{% endfor %}\
{% endfor %}\
{% endif %}\
{% endif %}\
{{ link(url, 'Open it') if url else '' }}"""
DIGEST = """\
{% for ticket in tickets %}\
{{ link(ticket.url, '#', ticket.id) }} {{ ticket.severity }}, {{ ticket.status }}: {{ ticket.message }}
{% endfor %}"""
DIGEST_TITLE = "Digest: {{ (tickets|length)|count('ticket') }}"


class TemplateFailed(PermanentError):
    """A template cannot be shown."""

    hint = "see `midwatch notify test`, and docs/notifications.md for what a template can show"


def needs_jinja() -> Any:
    """Return the module `jinja2.sandbox`. Raises SettingsError if it is not installed."""
    try:
        import jinja2.sandbox
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jinja2", "markupsafe"):
            raise
        raise SettingsError(
            "notifications need the package jinja2",
            path="notifications",
            hint="pip install 'midwatch[notify]'",
        ) from None
    return jinja2.sandbox


class Templates:
    """Shows values by templates, in the markup of a service.

    Raises SettingsError when it is made, if Jinja2 is not installed.
    """

    def __init__(self) -> None:
        self._sandbox = needs_jinja()
        self._compiled: dict[tuple[str, str], Template] = {}
        self._environments: dict[str, Any] = {}

    def show(self, source: str, values: object, format: Format, limit: int) -> str:
        """Return what a template says of values.

        Args:
            source: The template.
            values: A dataclass whose fields the template can name.
            format: The markup in which values are escaped.
            limit: Characters at which the text ends.

        Raises:
            TemplateFailed: The template is wrong, or names what is not there.
        """
        from jinja2 import TemplateError

        fields = values.__dataclass_fields__  # type: ignore[attr-defined]
        context = {name: getattr(values, name) for name in fields}
        written, parts = 0, []
        try:
            for part in self._template(source, format).generate(context):
                parts.append(part)
                written += len(part)
                if written > limit:
                    break
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f"line {line}: " if line else ""
            raise TemplateFailed(
                f"{where}{one_line(error.message or str(error))}"
            ) from None
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise TemplateFailed(one_line(str(error))) from None
        except RecursionError:
            raise TemplateFailed("it is nested too deeply") from None
        return "".join(parts)[:limit]

    def check(self, source: str) -> None:
        """Raise TemplateFailed for a template that is no template, or does what none may do."""
        from jinja2 import TemplateError

        try:
            self._template(source, PLAIN)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f"line {line}: " if line else ""
            raise TemplateFailed(f"{where}{one_line(error.message or '')}") from None
        except RecursionError:
            raise TemplateFailed("it is nested too deeply") from None

    def _template(self, source: str, format: Format) -> Template:
        key = (source, format.name)
        if key not in self._compiled:
            environment = self._environment(format)
            self._check(environment.parse(source))
            self._compiled[key] = environment.from_string(source)
        found: Template = self._compiled[key]
        return found

    def _check(self, tree: Any) -> None:
        from jinja2 import TemplateSyntaxError, nodes

        for name in _FORBIDDEN:
            for node in tree.find_all(getattr(nodes, name)):
                raise TemplateSyntaxError(
                    f"{name.lower()} is not allowed in a message", node.lineno
                )

        def descend(node: Any, depth: int) -> None:
            if isinstance(node, nodes.For):
                depth += 1
                if depth > _DEEPEST_LOOP or node.recursive:
                    raise TemplateSyntaxError(
                        f"loops are nested more than {_DEEPEST_LOOP} deep", node.lineno
                    )
            for child in node.iter_child_nodes():
                descend(child, depth)

        descend(tree, 0)

    def _environment(self, format: Format) -> Any:
        if format.name not in self._environments:
            self._environments[format.name] = _environment(self._sandbox, format)
        return self._environments[format.name]


def _environment(sandbox: Any, format: Format) -> Any:
    from jinja2 import StrictUndefined

    helpers = _helpers(format)

    class Closed(sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc]
        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if is_dataclass(obj):
                return not attr.startswith("_") and not callable(value)
            return attr in _LOOP and type(obj).__name__ == "LoopContext"

        def is_safe_callable(self, obj: Any) -> bool:
            return obj in helpers.values()

    def final(value: Any) -> str:
        if isinstance(value, Safe):
            return value
        return Safe(format.escape(_scalar(value)))

    environment = Closed(
        undefined=StrictUndefined, finalize=final, cache_size=0, autoescape=False
    )
    environment.globals.clear()
    environment.globals.update(helpers)
    environment.filters = dict(_FILTERS)
    environment.tests = {"defined": environment.tests["defined"]}
    return environment


def _scalar(value: Any) -> str:
    """Return a value as text. Raises TypeError for what is not one value."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return _time(value)
    if isinstance(value, (str, int, float)):
        return str(value)
    if type(value).__name__ == "StrictUndefined":
        return str(value)  # raises what is undefined
    raise TypeError(f"a {type(value).__name__} cannot be shown; show its fields")


def _time(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M UTC}"


def _helpers(format: Format) -> dict[str, Callable[..., Safe]]:
    def bold(text: Any) -> Safe:
        return Safe(format.bold(_scalar(text)))

    def code(text: Any) -> Safe:
        return Safe(format.code(_scalar(text)))

    def link(url: Any, *text: Any) -> Safe:
        return Safe(format.link(_scalar(url), "".join(map(_scalar, text))))

    return {"bold": bold, "code": code, "link": link}


def _truncate(text: Any, length: int = 100) -> str:
    return one_line(_scalar(text), max(int(length), 1))


def _default(value: Any, other: Any) -> Any:
    return other if value in (None, "") else value


def _count_but_one(number: int, noun: str) -> str:
    return format_count(number - 1, noun)


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "upper": lambda text: _scalar(text).upper(),
    "lower": lambda text: _scalar(text).lower(),
    "trim": lambda text: _scalar(text).strip(),
    "truncate": _truncate,
    "default": _default,
    "length": len,
    "count": format_count,
    "count_but_one": _count_but_one,
    "time": lambda value: _time(value),
    "duration": lambda seconds: format_duration(float(seconds)),
}
