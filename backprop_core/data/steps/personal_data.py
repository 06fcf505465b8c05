"""Finds personal data and secrets in rows by patterns and check digits, and flags, redacts, drops or quarantines them.

Found are e-mail addresses, phone numbers, IBANs and card numbers, and the secrets that `runtime.redaction` knows.
Names and addresses of people have no pattern: they are not found.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from backprop_core.data.row_formats import ChatRow
from backprop_core.data.steps.row_step import Finding, RowStep, rewritten
from backprop_core.runtime.redaction import IN_TEXT, PRIVATE_KEY, TOKEN
from backprop_core.schema.specs.curation import PersonalData

EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
# a card begins like those of its network; a time in milliseconds, which begins with 1, does not
ISSUED = re.compile(r"(?:4|5[1-5]|2(?:2[2-9]|[3-6]|7[01])|6)\d{14,18}$|3\d{13,18}$")
HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON may hold it, as an escape; UTF-8 may not
LEAST_DIGITS = 9  # of a phone number without +
PHONE = re.compile(
    r"(?<![\w.+/-])(?:(?:\+|00)[1-9]\d{0,2}[ ./-]?(?:\(0?\d{1,4}\)[ ./-]?)?\d(?:[ ./-]?\d){5,12}"
    r"|\(\d{3}\) ?\d{3}-\d{4}|\d{3}[-.]\d{3}[-.]\d{4}|\(?0[1-9]\d{1,4}\)?[ /-]\d{3,8}(?:[ -]\d{1,6}){0,2})(?![\w-])"
)
# a text without any of these marks matches none of the patterns
HINTS = re.compile(r"[\d@:=]|-----|--|\b[a-z]{2,4}[_-]\w{8}|earer |asic |uthorization|ookie")
FIELDS = ("passw", "secret", "key", "auth", "token")
# of the patterns of IN_TEXT in their order: what a match contains one of, once its case is folded
NEEDED: Sequence[Sequence[str]] = (
    *(("/",), ("/bot",), ("://",), ("://",), ("=",), ("author",), ("key", "token"), ("cook",), ("bearer",)),
    *(("basic",), FIELDS, ("--",), FIELDS),
)
SHOWN = {"email": "e-mail", "phone": "phone", "iban": "IBAN", "card": "card", "secret": "secret"}
MARK = re.compile(rb"\[(?:" + b"|".join(shown.encode() for shown in SHOWN.values()) + rb")\]")  # in a redacted row


@cache
def secrets() -> re.Pattern[str]:
    """Tokens of known services and private keys."""
    return re.compile(f"(?:{PRIVATE_KEY.removeprefix('(?s)')})|(?x:{TOKEN.removeprefix('(?x)')})", re.S)


@cache
def in_text() -> list[re.Pattern[str]]:
    """Passwords and keys by what stands before them."""
    return list(map(re.compile, IN_TEXT))


def is_iban(text: str) -> bool:
    """Whether the check digits are right: ISO 13616, modulo 97."""
    plain = text.replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def is_address(text: str) -> bool:
    """Whether it is an e-mail address, not the file of a high-resolution picture: `icon@2x.png`."""
    return re.search(r"@\dx\.", text) is None


def is_phone(text: str) -> bool:
    """Whether it has enough digits: `001/2024` and `0815-4711` are numbers of an invoice and a part."""
    return text.startswith("+") or sum(map(str.isdigit, text)) >= LEAST_DIGITS


def is_card(text: str) -> bool:
    """Whether it begins like the card of a network and the check digit is right (Luhn)."""
    digits = [int(character) for character in text if character.isdigit()]
    if not ISSUED.match("".join(map(str, digits))):
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


PATTERNS: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {  # in this order: a card is no phone number
    "email": (EMAIL, is_address),
    "iban": (IBAN, is_iban),
    "card": (CARD, is_card),
    "phone": (PHONE, is_phone),
}


def redacted(text: str, found: Counter[str]) -> str:
    """The text with `[e-mail]`, `[phone]`, … for personal data and secrets; counts them by kind. JSON stays JSON."""
    if not HINTS.search(text):
        return text
    made = replaced(text, found)
    if made == text or not is_json(text) or is_json(made):
        return made
    try:
        whole = json.dumps(member("", json.loads(text)), ensure_ascii=False)
    except RecursionError:
        return made
    return HALF_PAIR.sub(lambda half: f"\\u{ord(half[0]):04x}", whole)


def is_json(text: str) -> bool:
    """Whether it is a JSON object or array."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def member(name: str, value: Any) -> Any:
    """The value of a field in JSON, redacted; a number becomes text if it is personal data or a secret."""
    match value:
        case dict():
            return {replaced(key, Counter()): member(key, item) for key, item in value.items()}
        case list():
            return [member(name, item) for item in value]
        case bool() | None:
            return value
    beside, alone = (
        replaced(json.dumps({name: str(value)}, ensure_ascii=False), Counter()),
        replaced(str(value), Counter()),
    )
    made = json.loads(beside).get(name, alone) if is_json(beside) else alone
    return value if made == str(value) else made


def replaced(text: str, found: Counter[str]) -> str:
    """The text, redacted by patterns alone."""

    def replace(kind: str, known: Callable[[str], bool], keep: bool = False) -> Callable[[re.Match[str]], str]:
        def of(match: re.Match[str]) -> str:
            if not known(match[0]):
                return match[0]
            found[kind] += 1
            return f"{match[1] if keep else ''}[{SHOWN[kind]}]"

        return of

    text = secrets().sub(replace("secret", lambda _: True), text)
    folded = text.casefold()
    for pattern, needed in zip(in_text(), NEEDED, strict=True):
        if any(map(folded.__contains__, needed)):
            text = pattern.sub(replace("secret", lambda shown: not shown.endswith("[secret]"), keep=True), text)
            folded = text.casefold()
    for kind, (pattern, known) in PATTERNS.items():
        if kind != "email" or "@" in text:
            text = pattern.sub(replace(kind, known), text)
    return text


def clean(row: ChatRow) -> ChatRow:
    """The row, redacted."""
    found = Counter[str]()
    made: ChatRow = rewritten(row, lambda text: redacted(text, found))
    return made


def step(mode: PersonalData) -> RowStep:
    """What `mode` says of rows with personal data or secrets; kept rows are flagged in the lineage."""

    def judge(row: ChatRow) -> Finding | None:
        found = Counter[str]()
        clean = rewritten(row, lambda text: redacted(text, found))
        if not found:
            return None
        detail = ", ".join(f"{count} {SHOWN[kind]}" for kind, count in sorted(found.items()))
        match mode:
            case "redact" if "chosen" in row and clean["chosen"] == clean["rejected"]:
                return Finding("dropped", "no_preference", detail, clean)
            case "redact":
                return Finding("kept", "redacted", detail, clean)
            case "drop":
                return Finding("dropped", "personal_data", detail, clean)
            case "quarantine":
                return Finding("quarantined", "personal_data", detail, clean)
        return Finding("kept", "personal_data", detail)

    return lambda rows: [judge(row) for row in rows]
