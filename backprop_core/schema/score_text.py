"""How scores and differences are written for people: shares in percent and points, losses as they are."""

WITHOUT_LIMIT = ("loss", "bits_per_byte")  # negated in scores, so that higher is better; not shares of 1
FINEST = 3  # more digits than usual, for a difference that would be rounded to 0


def level(score: float | None, metric: str) -> str:
    """A score; a dash for None."""
    if score is None:
        return "–"
    return f"{-score:.3f}" if metric in WITHOUT_LIMIT else f"{100 * score:.1f} %"


def change(difference: float | None, metric: str) -> str:
    """The difference of two levels, with its sign: that of a loss that has fallen is negative; a dash for None."""
    if difference is None:
        return "–"
    return gain(0.0 - difference if metric in WITHOUT_LIMIT else difference, metric)


def gain(difference: float, metric: str) -> str:
    """How much better a score is, with its sign: negative if it is worse."""
    return signed(difference, 3) if metric in WITHOUT_LIMIT else f"{signed(100 * difference, 1)} points"


def signed(value: float, digits: int) -> str:
    """A number with its sign, and with more digits where it would read as 0."""
    texts = (f"{value:+.{more}f}" for more in range(digits, digits + FINEST + 1))
    return next((text for text in texts if float(text)), f"{0:+.{digits}f}")


def amount(difference: float, metric: str) -> str:
    """How large a difference is, without its sign."""
    return gain(abs(difference), metric)[1:]


def bare(text: str) -> str:
    """A level or a difference without its unit, for a table that says it."""
    return text.removesuffix(" %").removesuffix(" points")


def titled(title: str, metric: str) -> str:
    """The title of such a table."""
    return title if metric in WITHOUT_LIMIT else f"{title}, in %"


def limit(difference: float, metric: str) -> str:
    """A difference that a spec allows, with all its digits."""
    return f"{difference:g}" if metric in WITHOUT_LIMIT else f"{100 * difference:g} points"
