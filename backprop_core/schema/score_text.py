"""How scores and differences are written for people: shares in percent and points, losses as they are."""

WITHOUT_LIMIT = ("loss", "bits_per_byte")  # negated in scores, so that higher is better; not shares of 1


def level(score: float | None, metric: str) -> str:
    """A score; a dash for None."""
    if score is None:
        return "–"
    return f"{-score:.3f}" if metric in WITHOUT_LIMIT else f"{100 * score:.1f} %"


def change(difference: float | None, metric: str) -> str:
    """A difference of two scores, with its sign; a dash for None."""
    if difference is None:
        return "–"
    return f"{difference:+.3f}" if metric in WITHOUT_LIMIT else f"{100 * difference:+.1f} points"


def amount(difference: float, metric: str) -> str:
    """How large a difference is, without its sign."""
    return change(abs(difference), metric)[1:]


def limit(difference: float, metric: str) -> str:
    """A difference that a spec allows, with all its digits."""
    return f"{difference:g}" if metric in WITHOUT_LIMIT else f"{100 * difference:g} points"
