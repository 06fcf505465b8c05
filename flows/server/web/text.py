"""How the pages write numbers and times."""

from datetime import datetime, timedelta

EVENING, MORNING = 20, 7  # hours between which it is night


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def when(time: datetime, now: datetime | None = None) -> str:
    """A time as a person says it, in this machine's time zone."""
    local = time.astimezone()
    today = (now or datetime.now().astimezone()).date()
    day = local.date()
    clock = f"{local:%H:%M}"
    names = {today: "today", today - timedelta(days=1): "yesterday", today + timedelta(days=1): "tomorrow"}
    if day in names:
        return f"{names[day]} {clock}"
    near = abs((day - today).days) < 7
    return f"{local:%A} {clock}" if near else f"{local.day} {local:%b} {local.year} {clock}"


def lately(time: datetime, now: datetime | None = None) -> str:
    """The same of what has ended: `last night` for the hours before this morning."""
    local, today = time.astimezone(), (now or datetime.now().astimezone()).date()
    evening = local.date() == today - timedelta(days=1) and local.hour >= EVENING
    if evening or (local.date() == today and local.hour < MORNING):
        return f"last night {local:%H:%M}"
    return when(time, now)


def zone() -> str:
    """The time zone of `when`, like `UTC` or `CET (UTC+01:00)`."""
    here = datetime.now().astimezone()
    name, offset = here.tzname() or "", f"{here:%z}"
    return name if name == "UTC" else f"{name} (UTC{offset[:3]}:{offset[3:]})"


def exact(time: datetime) -> str:
    """A time to the second, in UTC."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def left(until: datetime, now: datetime | None = None) -> str:
    """How long there is until a time."""
    minutes = ((now or datetime.now(until.tzinfo)) - until).total_seconds() / -60
    if minutes < 1:
        return "less than a minute left"
    return f"{minutes / 60:.0f} h left" if minutes >= 90 else f"{minutes:.0f} min left"


def duration(seconds: float) -> str:
    """How long something takes."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
