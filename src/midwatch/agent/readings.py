"""Readings: whether a quote gives the value that is claimed, compared as numbers with units (pure).

"12.2 s (limit 10 s)" is given by "took 12.2 s": its first number must stand in the quote, the others
anywhere in the cited evidence. Units are converted (0.095 s is 95 ms, 0.95 is 95 %, 3m 20s is 200 s); a
value may be rounded to the digits that it shows. A sign, a unit or a magnitude that differs fails. A number
of the evidence without a unit has that of its name ("size_bytes 95"), else one that the evidence speaks of,
else the base unit: seconds, bytes. The number of a process, port or status has none. "97 of 100" is 97 % too,
and "5 of 5" is not given by "0 of 5". What is not a quantity (a version, an address, a time of day, a state)
must stand in the evidence as it is written, a state not right behind a negation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

from midwatch.agent.quotes import is_denied

LONGEST_VALUE = 400
"""Most characters of a value that is compared; a longer one fails."""
MOST_ROUNDED = Decimal("0.05")
"""The most by which rounding may change a value, as a share of it."""
_MOST_SUMMED = 50

# ------------------------------------------------------------------ units

_TIME, _BYTES, _SHARE, _COUNT = "time", "bytes", "share", "count"
_K, _KI = Decimal(1000), Decimal(1024)


_Unit = tuple[str, tuple[Decimal, ...]]


def _table() -> dict[str, _Unit]:
    """Return the dimension of each unit and its factors to the base unit: kB may be 1000 or 1024 bytes."""
    seconds = {
        "ns nanosecond nanoseconds": "1e-9",
        "us µs μs microsecond microseconds": "1e-6",
        "ms msec msecs millis millisecond milliseconds": "0.001",
        "s sec secs second seconds": "1",
        "m min mins minute minutes": "60",
        "h hr hrs hour hours": "3600",
        "d day days": "86400",
        "w week weeks": "604800",
    }
    found: dict[str, _Unit] = {}
    for names, factor in seconds.items():
        found |= dict.fromkeys(names.split(), (_TIME, (Decimal(factor),)))
    found |= dict.fromkeys("b byte bytes".split(), (_BYTES, (Decimal(1),)))
    for power, prefix in enumerate("kmgtpe", 1):
        found[f"{prefix}b"] = (_BYTES, (_K**power, _KI**power))
        found[f"{prefix}ib"] = found[f"{prefix}i"] = (_BYTES, (_KI**power,))
    for name, power in (("kilo", 1), ("mega", 2), ("giga", 3), ("tera", 4)):
        found |= dict.fromkeys(
            (f"{name}byte", f"{name}bytes"), (_BYTES, (_K**power, _KI**power))
        )
    for name, power in (("kibi", 1), ("mebi", 2), ("gibi", 3), ("tebi", 4)):
        found |= dict.fromkeys((f"{name}byte", f"{name}bytes"), (_BYTES, (_KI**power,)))
    percent = (_SHARE, (Decimal("0.01"),))
    found |= dict.fromkeys(("%", "percent", "pct", "percentage"), percent)
    found["‰"] = (_SHARE, (Decimal("0.001"),))
    return found


_UNITS = _table()
# These multiply what is counted: 12k rows, 1.5M, 2 million.
_MULTIPLIERS = {
    **{"k": _K, "K": _K, "M": _K**2, "G": _K**3, "T": _K**4},
    **{"thousand": _K, "million": _K**2, "billion": _K**3},
}
_PER_SECOND = frozenset("rps qps tps iops fps".split())
_NOT_CONVERTED = re.compile(r"°[CF]?|[kMG]?Hz|m?[VA]|k?W|dBm?|rpm")
_PER = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_NAMED = re.compile(
    r"(?i)(?<![a-z])(?:nanoseconds?|ns|microseconds?|us|milliseconds?|millis|msecs?|ms|seconds?|secs?|minutes?"
    r"|hours?|days?|bytes?|[kmgt]i?b|percent(?:age)?|pct|ratio|(?<=\d)s|(?<=\d )s)(?![a-z])|%"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it is written, with its unit.

    `factors` bring it to the base unit: several where the unit is ambiguous. `dimension` is "" without a
    unit, `per` the seconds of a rate's unit (1 for "/s") or 0. `step` is that of the last digit written.
    `named` is a unit that stands before the number, in its field's name.
    """

    number: Decimal
    step: Decimal
    dimension: str = ""
    unit: str = ""
    factors: tuple[Decimal, ...] = (Decimal(1),)
    per: int = 0
    named: str = ""


# ------------------------------------------------------------------ reading numbers

_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>(?<![\d)\]}%]\s)(?<![\w)\]}%])[-+](?=[\d.]))?"
    r"(?P<digits>\d{1,3}(?:[,_']\d{3})+(?:\.\d+)?|\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})"
    r"(?P<exponent>[eE][-+]?\d{1,3})?(?![\d])"
    r"(?:(?P<unit>\s?(?!per\b)(?:%|‰|°[CF]?|[^\W\d_]{1,14}))(?![\w]))?"
    r"(?P<per>\s?/\s?(?:seconds?|sec|s|minute|min|hour|h)\b|\s?per (?:second|minute|hour)\b|ps\b)?"
)
_INTERVAL = re.compile(
    r"(?<![\d:T-])(?<!\d )(?:(\d{1,6}) days? )?(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)(?![\d:])"
)
_NO_NOUNS = frozenset("across always less minus plus this thus versus".split())
# What has digits and is no quantity: dates, times, versions, addresses, names.
_LITERAL = re.compile(
    r"(?i)\d{4}-\d\d-\d\d(?:[t ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?z?|\b\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?\b"
    r"|\b\d+(?:\.\d+){2,}(?:[/:]\d+)?|\b(?=\w*\d)[a-z_][\w./-]*"
    r"|\b(?=[0-9-]{0,40}[a-f][0-9-]{0,40}[a-f])[0-9a-f-]{8,}\b"
)
_JOINED = re.compile(r"\s?(?:-|/|\.\.+|to|bis|through)\s?")
_SPACED = re.compile(r"(?<![\w.])\d{1,3}(?:[ \u2009]\d{3})+(?![\w.])")
_COMPACT = re.compile(
    r"(?<![\w.])(?:\d{1,5}[wdhm])+(?=\d{1,5}(?:\.\d{1,9})?(?:[dhms]|ms)(?!\w))"
)
_COMMA = re.compile(
    r"(?<![\w.,])(\d{1,3}(?:\.\d{3})+|\d{1,15}),(\d{1,2})(?=\s?[^\W\d_]|\s?%|$)"
)
_POINTS = re.compile(r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,}(?![\w.,])")
_SIZE = re.compile(r"(?<![\w.])(\d{1,9}(?:\.\d{1,3})?[KMGTP])(?!\w|\s?[^\W\d_])")
_IN_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve".split()
)
_WORD = re.compile(rf"(?i)\b(?:{'|'.join(_IN_WORDS)})\b")
_FRACTION = re.compile(
    r"(?<![\w./])(\d{1,6}) ?(?:/|(?:out )?of) ?(\d{1,6})(?![\w/]|\.\d)"
)
_NAME_OF_ID = re.compile(
    r"(?i)(?<![a-z])(?:[pux]?id|oid|port|status|code|line|ticket)[\s:=\"']{1,3}$"
)


_Found = list[tuple[re.Match[str], Quantity]]


def quantities(text: str) -> list[Quantity]:
    """Return the numbers of a normalised text with their units, and the durations in several units."""
    found: list[Quantity] = []
    for run in _runs(_spread(text)):
        found += run if len(run) == 1 else [_sum(run), *run]
    return [*found, *map(_interval, _INTERVAL.finditer(text))]


def _spread(text: str) -> str:
    """Return a text with the parts of its durations apart: 1m30s becomes 1m 30s."""
    return _COMPACT.sub(lambda match: re.sub("(?<=[wdhm])", " ", match[0]), text)


def _otherwise(text: str) -> str:
    """Return a text whose numbers are in words, in continental form, or sizes as `df -h` has them (90G), in the usual form."""
    text = _POINTS.sub(lambda match: match[0].replace(".", ""), text)
    text = _COMMA.sub(lambda match: f"{match[1].replace('.', '')}.{match[2]}", text)
    text = _WORD.sub(lambda match: str(_IN_WORDS.index(match[0].lower())), text)
    return _SIZE.sub(r"\1B", text)


def _all_quantities(text: str) -> list[Quantity]:
    """Return the numbers of a text in either form, and the share that each "a of b" is."""
    other = _otherwise(text)
    return [
        *quantities(text),
        *(quantities(other) if other != text else ()),
        *_shares(text),
    ]


def _shares(text: str) -> Iterator[Quantity]:
    factors = _UNITS["%"][1]
    for match in _FRACTION.finditer(text):
        if whole := int(match[2]):
            share = Decimal(int(match[1])) * 100 / whole
            yield Quantity(share, Decimal(1), _SHARE, "%", factors)


def _claimed(value: str) -> list[Quantity]:
    """Return the quantities of a value, the main one first; a duration in several units is one."""
    interval = _INTERVAL.match(value)
    rest = value[interval.end() :] if interval else value
    claimed = [_interval(interval)] if interval else []
    runs = _runs(_spread(rest))
    return [*claimed, *(run[0] if len(run) == 1 else _sum(run) for run in runs)]


def _sum(run: Sequence[Quantity]) -> Quantity:
    """Return a duration in several units, such as 2h 5m, in seconds."""
    total = sum((abs(one.number) * one.factors[0] for one in run), Decimal(0))
    sign = -1 if run[0].number < 0 else 1
    return Quantity(total * sign, run[-1].step * run[-1].factors[0], _TIME, "s")


def _interval(match: re.Match[str]) -> Quantity:
    """Return an interval as PostgreSQL writes it, 1 day 02:03:04.5, in seconds."""
    days, hours, minutes, seconds = match.groups()
    total = int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60
    return Quantity(total + Decimal(seconds), Decimal(1), _TIME, "s")


def _quantity(match: re.Match[str], text: str) -> Quantity:
    written = re.sub(r"[,_']", "", match["digits"]) + (match["exponent"] or "")
    number = Decimal(written) * (-1 if match["sign"] == "-" else 1)
    exponent = number.as_tuple().exponent
    step = Decimal(1).scaleb(exponent) if isinstance(exponent, int) else Decimal(1)
    per = match["per"] or ""
    word = re.sub(r"^(?:/|per)|ps$", "", per.replace(" ", "")) or "s"
    before = text[max(match.start() - 80, 0) : match.start()]
    found = Quantity(
        number,
        step,
        per=_PER.get(word.rstrip("s") or "s", 1) if per else 0,
        named=_name_of_unit(before),
    )
    unit = (match["unit"] or "").strip()
    result = _with_unit(found, unit, apart=(match["unit"] or "").startswith(" "))
    if not result.dimension and not per and _NAME_OF_ID.search(before):
        return replace(result, dimension="unit id")
    return result


def _with_unit(found: Quantity, unit: str, *, apart: bool) -> Quantity:
    """Return a quantity with a unit that is written behind it, `apart` or joined to it."""
    if unit in _MULTIPLIERS and not (apart and unit == "T"):
        scale = _MULTIPLIERS[unit]
        return replace(found, number=found.number * scale, step=found.step * scale)
    known = _UNITS.get(unit) or (_UNITS.get(unit.lower()) if len(unit) > 1 else None)
    if unit == "B" or known:
        dimension, factors = known or _UNITS["b"]
        return replace(found, dimension=dimension, unit=unit.lower(), factors=factors)
    if unit.lower() in _PER_SECOND:
        return replace(found, per=1)
    noun = apart and len(unit) > 3 and unit.endswith("s") and unit.islower()
    if noun and unit not in _NO_NOUNS:
        return replace(found, dimension=_COUNT, unit=unit)  # 31 sessions
    if unit and (not apart or _NOT_CONVERTED.fullmatch(unit)):
        return replace(found, dimension=f"unit {unit}", unit=unit)
    return found


def _name_of_unit(before: str) -> str:
    """Return the unit in the name right before a number, such as that of `size_bytes: 95`, or ""."""
    name = re.split(r"[,;\n]|\d(?=[^\w.])", before)[-1]
    units = list(_NAMED.finditer(name))
    return units[-1][0].lower() if units else ""


def _ranged(text: str, found: _Found) -> _Found:
    """Give the lower end of a range, or a part of a total, the unit of the other."""
    result = found[:]
    for index, ((match, one), (after, other)) in enumerate(pairwise(found)):
        joined = _JOINED.fullmatch(text, match.end(), after.start())
        if joined and other.dimension and not one.dimension:
            one = replace(
                one,
                dimension=other.dimension,
                unit=other.unit,
                factors=other.factors,
                per=other.per,
            )
            result[index] = (match, one)
    return result


def _runs(text: str) -> Iterator[list[Quantity]]:
    """Yield the quantities of a text, those of one duration in falling units together: 2h 5m."""
    plain = _LITERAL.sub(lambda match: "_" * len(match[0]), text)
    found = [(match, _quantity(match, text)) for match in _NUMBER.finditer(plain)]
    run: list[Quantity] = []
    end = 0
    for match, one in _ranged(text, found):
        between = text[end : match.start()].strip(" ,")
        falls = run and run[-1].dimension == one.dimension == _TIME
        if falls and one.factors < run[-1].factors and between in ("", "and"):
            run.append(one)
        else:
            if run:
                yield run
            run = [one]
        end = match.end()
    if run:
        yield run


# ------------------------------------------------------------------ comparing


def gives_value(value: str, quote: str, evidence: str) -> bool:
    """Return whether a quote gives a value.

    Args:
        value: The value that is claimed, with its unit.
        quote: The quote, normalised.
        evidence: The whole text of the evidence that is cited, normalised.
    """
    value = _plain(value)
    if not value or len(value) > LONGEST_VALUE:
        return False
    joined = _SPACED.sub(lambda match: re.sub(r"\s", "", match[0]), value)
    forms = dict.fromkeys([value, joined, _otherwise(joined)])
    return any(_gives(form, quote, evidence) for form in forms)


def _plain(value: str) -> str:
    dashes = str.maketrans(dict.fromkeys("‐‑‒–—―−", "-"))
    plain = unicodedata.normalize("NFKC", value.replace("\u2009", " "))
    plain = " ".join(plain.translate(dashes).split()).strip(" '\"`*")
    return re.sub(r"^(?:-|(?i:minus|negative)) (?=[\d.])", "-", plain)


def _gives(value: str, quote: str, evidence: str) -> bool:
    claimed = _claimed(value)
    if not re.search(r"\d", value):
        return _is_state(value, quote)
    if _stands(value, quote, r"(?<![\w.,+-])"):
        return True
    if not claimed or _is_other_part(value, quote):
        return False
    first, *others = claimed
    given = _all_quantities(quote)
    if not (_is_among(first, given, evidence) or _is_sum(first, quantities(quote))):
        return False
    known = {
        *given,
        *_shares(value),
        *(_all_quantities(evidence) if others else ()),
    }
    if not all(_is_among(one, known, evidence) for one in others):
        return False
    literals = [
        one[0]
        for one in _LITERAL.finditer(
            _INTERVAL.sub("", value, 1) if _INTERVAL.match(value) else value
        )
    ]
    return all(one in evidence for one in literals if one[0].isdigit())


def _stands(value: str, quote: str, before: str) -> bool:
    """Return whether a value stands in the quote as it is, behind something and at its own end."""
    after = r"(?![\w%])(?![.,:/-]\d)(?!\s?/\s?(?:s|min|h)| per )"
    return bool(re.search(f"{before}{re.escape(value)}{after}", quote))


def _is_state(value: str, quote: str) -> bool:
    """Return whether a quote gives a value in words: several words, or one that is not the name of a field."""
    value = re.sub(r"\s*\([^()]*\)$", "", value).rstrip(".,;")
    if not value:
        return False
    if _stands(value, quote, r"[:=|(]\s?[\"']?"):
        return True
    if re.search(r"\w[\s:=]+\w", value):
        found = re.finditer(rf"(?<![\w.,+-]){re.escape(value)}(?!\w)", quote)
    else:
        found = re.finditer(rf"(?<=[^\W\d_]\s){re.escape(value)}(?=\W*$|[.,;)])", quote)
    return any(not is_denied(quote[: match.start()]) for match in found)


def _is_other_part(value: str, quote: str) -> bool:
    """Return whether a quote has another part of the same total: 0 of 5 for 5 of 5."""
    claimed, given = (
        {m.groups() for m in _FRACTION.finditer(t)} for t in (value, quote)
    )
    return any(
        whole == total and (part, whole) not in given
        for part, whole in claimed
        for _, total in given
    )


def _is_among(one: Quantity, given: Iterable[Quantity], evidence: str) -> bool:
    return any(_is_equal(one, other, evidence) for other in given)


def _is_sum(one: Quantity, given: Sequence[Quantity]) -> bool:
    """Return whether a total is that of all numbers of its unit in the quote."""
    dimensions = ("", _COUNT) if one.dimension == _COUNT else (one.dimension,)
    alike = [other for other in given if other.dimension in dimensions]
    if not 2 <= len(alike) <= _MOST_SUMMED or one.per:
        return False
    total = sum((other.number * other.factors[0] for other in alike), Decimal(0))
    return _converted(one, total, (Decimal(1),), 0)


def _is_equal(claimed: Quantity, given: Quantity, evidence: str) -> bool:
    rates = claimed.per and {claimed.dimension, given.dimension} <= {"", _COUNT}
    alike = rates or claimed.dimension == given.dimension
    if alike and bool(claimed.per) == bool(given.per):
        if (claimed.unit, claimed.per) == (given.unit, given.per):
            return _is_close(claimed, given.number)
        return _converted(claimed, given.number, given.factors, given.per)
    if not claimed.dimension and not claimed.per:
        share = given.factors[0] if given.dimension == _SHARE else Decimal(1)
        return any(_is_close(claimed, given.number * one) for one in (1, share))
    if given.dimension or (given.per and not claimed.per):
        return False
    if claimed.dimension in ("", _COUNT) or claimed.dimension.startswith("unit "):
        return _is_close(claimed, given.number)
    return any(
        _converted(claimed, given.number, factors, given.per or claimed.per)
        for factors in _assumed(claimed.dimension, given.named, evidence)
    )


@lru_cache(maxsize=4)
def _spoken(evidence: str) -> list[_Unit]:
    """Return the units that the evidence names."""
    names = {match[0].lower() for match in _NAMED.finditer(evidence)}
    return [_UNITS[name] for name in sorted(names) if name in _UNITS]


def _assumed(
    dimension: str, named: str, evidence: str
) -> Iterator[tuple[Decimal, ...]]:
    """Yield the factors that a number without a unit may have in a dimension."""
    base = (Decimal(1),)
    if named == "ratio":
        named = ""
        spoken: list[_Unit] = []
    elif named:
        spoken = [_UNITS[named]]
    else:
        spoken = _spoken(evidence)
    yield from (factors for found, factors in spoken if found == dimension)
    alike = any(found == dimension for found, _ in spoken)
    if not named and (not alike or dimension in (_SHARE, _BYTES)):
        yield base


def _converted(
    claimed: Quantity, number: Decimal, factors: Sequence[Decimal], per: int
) -> bool:
    """Return whether a number with these factors is the claimed one, in its unit."""
    rate = Decimal(claimed.per or 1) / Decimal(per or 1)
    return any(
        _is_close(claimed, number * factor / own * rate)
        for own in claimed.factors
        for factor in factors
    )


def _is_close(claimed: Quantity, number: Decimal) -> bool:
    """Return whether the claimed number is this one, rounded to the digits that it shows."""
    difference = abs(claimed.number - number)
    return difference == 0 or difference <= min(
        claimed.step / 2, abs(number) * MOST_ROUNDED
    )
