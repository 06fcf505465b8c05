"""Reads the time of a row, for datasets that are split by time: microseconds since 1970, UTC."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from backprop_core.data.parsed_items import Place
from backprop_core.errors import InputValidationFailed

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECONDS = range(10**8, 10**11)  # numbers that are Unix times in seconds: 1973 to 5138
MILLISECONDS = range(10**11, 10**14)  # or in milliseconds, of the same years
DIGITS = 9  # a shorter text of digits is a date: 20240131


def time_of(row: dict[str, Any], field: str, place: Place, name: str) -> int:
    """The time in a field of a row, which stands at `place` of the source `name`. Raises InputValidationFailed."""
    value = row.get(field)
    found = moment(value)
    if found is not None:
        return (found - EPOCH) // timedelta(microseconds=1)
    what = f"{value!r} is not a time" if value not in (None, "") else "the row has no time"
    raise InputValidationFailed(
        f"{name}: {place}: time_split.field {field}: {what}",
        hint="write ISO 8601 (2026-01-31T12:00:00Z), or Unix time in seconds or milliseconds",
    )


def moment(value: Any) -> datetime | None:
    """A value as a time; without a time zone it is UTC, and a date is its midnight. None if it is no time."""
    match value:
        case datetime():
            return value if value.tzinfo else value.replace(tzinfo=UTC)
        case date():
            return datetime.combine(value, time(), UTC)
        case int() | float():
            return unix(value)
        case str():
            return written(value.strip())
    return None


def written(text: str) -> datetime | None:
    """A time as text."""
    if text.isdecimal() and len(text) >= DIGITS:
        return unix(int(text))
    try:
        return moment(datetime.fromisoformat(text))
    except ValueError:
        return None


def unix(number: float) -> datetime | None:
    """A Unix time, in seconds or milliseconds by its size."""
    if SECONDS.start <= number < SECONDS.stop:
        return EPOCH + timedelta(seconds=number)
    if MILLISECONDS.start <= number < MILLISECONDS.stop:
        return EPOCH + timedelta(milliseconds=number)
    return None
