"""Detects the row format of a dataset, and converts its rows to chat rows."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from backprop_core.data.file_readers import Item, Malformed, Place
from backprop_core.data.preference_rows import texts, thumb
from backprop_core.data.row_formats import FORMATS, ChatRow, Format, Row
from backprop_core.data.row_turns import learned
from backprop_core.data.tool_calls import tools_of
from backprop_core.data.unsupported_fields import refuse_row, says_more, untrained
from backprop_core.errors import ConfigInvalid, FormatsMixed, FormatUnknown
from backprop_core.schema.specs import DatasetSpec

DETECTED_FROM = 10_000  # rows at the start of a source; every later row is checked against the format found there
MIXED = "mixed"


@dataclass(frozen=True)
class Conversion:
    """Converts the rows of one source: all in the format `name`, or each in its own if that is "mixed"."""

    name: str
    spec: DatasetSpec
    first: Place | None  # of the rows in this format
    candidates: Mapping[str, Format]

    def __call__(self, item: Item) -> ChatRow:
        """The item's chat row. Raises Malformed, and FormatsMixed for a row of another format."""
        try:
            return self.converted(item)
        except RecursionError as error:
            raise Malformed("too_deep", "the row is nested too deeply") from error

    def converted(self, item: Item) -> ChatRow:
        if isinstance(item.value, Malformed):
            raise item.value
        row = mapped(item.value, self.spec.columns)
        if self.name == MIXED:
            own = best(row, self.candidates)
            if own is None:
                raise Malformed("unknown_format", f"the row fits no format, with fields {found_in([row])}")
            return chat_row(row, self.candidates[own], self.spec.columns)
        self.check(row, item.place)
        return chat_row(row, FORMATS[self.name], self.spec.columns)

    def check(self, row: Row, place: Place) -> None:
        """Raise FormatsMixed for a row that is of another of the possible formats."""
        if not FORMATS[self.name].fits(row) and (other := best(row, self.candidates)):
            raise mixed(self.spec, {self.name: self.first, other: place})


def conversion(head: Iterable[Item], spec: DatasetSpec) -> Conversion:
    """How to convert a source's rows, by those at its start.

    The format is the configured one, or else that of the rows: each is of the first format in FORMATS that it has
    values for. Raises FormatsMixed for rows of two formats, FormatUnknown if no row is of any, ConfigInvalid for
    columns that do not exist.
    """
    items = [item for item in head if isinstance(item.value, dict)]
    rows = [mapped(item.value, spec.columns) for item in items if isinstance(item.value, dict)]
    known = FORMATS if spec.format in ("auto", MIXED) else {spec.format: FORMATS[spec.format]}
    known = {name: format for name, format in known.items() if format.fields >= spec.columns.keys()}
    check_columns(rows, known, spec)
    name, first = (MIXED, None) if spec.format == MIXED else detected(items, rows, known, spec)
    return Conversion(name, spec, first, known)


def detected(
    items: Sequence[Item], rows: Sequence[Row], known: Mapping[str, Format], spec: DatasetSpec
) -> tuple[str, Place | None]:
    """The format of these rows, and the place of the first row in it."""
    places: dict[str, Place] = {}
    votes = Counter[str]()
    for item, row in zip(items, rows, strict=True):
        if name := best(row, known):
            places.setdefault(name, item.place)
            votes[name] += 1
    if votes:
        chosen = votes.most_common(1)[0][0]
        strays = (name for name in votes if name != chosen and not fits_all(name, chosen, rows, known))
        if stray := next(strays, None):
            raise mixed(spec, {chosen: places[chosen], stray: places[stray]})
        return chosen, places[chosen]
    has = {name: sum(map(format.has, rows)) for name, format in known.items()}
    most = max(has, key=has.__getitem__)
    if rows and not has[most]:
        raise unknown(rows, known, spec)
    return most, None


def best(row: Row, known: Mapping[str, Format]) -> str | None:
    """The first format that the row has values for; None if there is none."""
    return next((name for name, format in known.items() if format.fits(row)), None)


def fits_all(name: str, chosen: str, rows: Sequence[Row], known: Mapping[str, Format]) -> bool:
    """Whether all rows that are of the format `name` fit `chosen` as well."""
    return all(known[chosen].fits(row) for row in rows if best(row, known) == name)


def mixed(spec: DatasetSpec, places: Mapping[str, Place | None]) -> FormatsMixed:
    """The error, with a place of each format."""
    found = " and ".join(f"{name} ({place})" if place else name for name, place in places.items())
    return FormatsMixed(
        f"{spec.path} mixes row formats: {found}",
        hint="split the file, or set the dataset's `format`: mixed reads each row in its own, a name reads all in one",
    )


def chat_row(row: Row, format: Format, columns: dict[str, str]) -> ChatRow:
    """Convert a row to a chat row. Raises Malformed if that would lose information."""
    made = format.convert(row)
    used = {*format.fields, *columns.values()}
    if "chosen" in used:  # mapped by columns: the user knows that it is one of two answers
        used |= {"rejected"}
    if "messages" in made:
        made, judged = with_thumb(with_tools(made, row), row)
        used |= {"functions", *judged}
    if row.get("tool_choice") == "auto":  # the default
        used |= {"tool_choice"}
    said = list(texts(made)) if "messages" in made else [made["text"]]
    refuse_row(row, used=used, said=said)
    if not columns:  # columns say which fields to use
        refuse_others(row, used=used, said=said)
    return made


def with_tools(made: ChatRow, row: Row) -> ChatRow:
    """The chat row with the row's tools."""
    tools = tools_of(row)
    return {**made, "tools": tools} if tools else made


def with_thumb(made: ChatRow, row: Row) -> tuple[ChatRow, set[str]]:
    """The chat row with its label, if its answer was rated, and the fields that say so."""
    good, fields = thumb(row)
    if good is None or "chosen" in made:
        return made, set()
    if not any(map(learned, made["messages"][-1:])):
        raise Malformed("no_answer", f"{', '.join(sorted(fields))} rates a row that does not end with an answer")
    return {**made, "label": good}, fields


def refuse_others(row: Row, *, used: Collection[str], said: Sequence[str]) -> None:
    """Raise Malformed for a row that also fits another format, with different text there."""
    for other in FORMATS.values():
        if other.has(row):
            for name in other.required:
                if name not in used and says_more(row[name], said):
                    raise untrained("the row", name, row[name])


def mapped(row: Row, columns: dict[str, str]) -> Row:
    """The row with the format's fields added, copied from their columns."""
    return {**row, **{field: row[column] for field, column in columns.items() if column in row}} if columns else row


def check_columns(rows: Sequence[Row], candidates: Mapping[str, Format], spec: DatasetSpec) -> None:
    if not candidates:
        known = "; ".join(f"{name}: {', '.join(sorted(format.fields))}" for name, format in FORMATS.items())
        raise ConfigInvalid(f"columns: no format has {', '.join(spec.columns)}", hint=f"fields by format: {known}")
    missing = [column for column in spec.columns.values() if not any(column in row for row in rows)]
    if rows and missing:
        raise ConfigInvalid(f"columns: {spec.path} has no {', '.join(missing)}", hint=f"it has {found_in(rows)}")


def found_in(rows: Sequence[Row]) -> str:
    return ", ".join(sorted({str(field) for row in rows for field in row})) or "no fields"


def unknown(rows: Sequence[Row], candidates: Mapping[str, Format], spec: DatasetSpec) -> FormatUnknown:
    known = "; ".join(f"{name}: {', '.join(format.required)}" for name, format in candidates.items())
    return FormatUnknown(
        f"{spec.path}: unknown row format, with fields {found_in(rows)}",
        hint=f"map them with columns (field of the format -> column of the file). Formats: {known}",
    )
