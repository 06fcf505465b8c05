"""Redacts secrets in logs, messages and JSON for people, but never in values that a program reads again.

A secret is recognized by its value, if an environment variable holds it, or by its pattern: a token of a known service,
an authorization header, a private key, a password in a URL. A weak value, like `finished` or `1234567`, is not
replaced: it occurs in ordinary text, and the gaps would reveal the password. `weak_secrets` lists such variables.
"""

import json
import logging
import os
import re
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from pydantic import JsonValue

BLANK = "***"
SHORTEST = 8  # shorter values are not replaced
DEEPEST = 3  # levels of JSON nested in JSON strings
LONGEST_WORD = 15  # letters of what may be an ordinary word
FEWEST_CHARACTERS = 4  # different ones; `00000000` and `--------` occur in digests and tables
# Patterns stay strings: compiling them all would slow `--help` down.
SECRET_NAME = (
    r"(?i)TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|PASSPHRASE|(?:^|_)PASS(?:_|$)|_PWD$|API_?KEY|ACCESS_KEY|PRIVATE_KEY|"
    r"AUTH_STRING|(?<!APPLICATION_)CREDENTIAL"
)
NO_SECRET_NAME = r"(?i)_(FILE|PATH|DIR|URL|URI|NAME|USER|USERNAME|HELPER|ID)$"
IN_AN_ADDRESS = r"://[^\s/:@]*:(?!\d+/)((?:(?!://)\S)+)@"
PRIVATE_KEY = r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)"
TOKEN = r"""(?x)  # tokens of known services, with unmistakable prefixes
    (?<![A-Za-z0-9_-])(?:
        hf_[A-Za-z0-9]{16,} | sk-[A-Za-z0-9_-]{16,} | [rs]k_(?:live|test)_[A-Za-z0-9]{16,}
        | gh[pousr]_[A-Za-z0-9]{16,} | github_pat_\w{16,} | gl(?:pat|ptt|dt|rt)-[\w-]{16,}
        | (?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA|AGPA|ANPA|ANVA)[A-Z0-9]{16}(?![A-Za-z0-9])
        | xox[a-z]-[A-Za-z0-9-]{10,} | xapp-[A-Za-z0-9-]{10,}
        | gsk_[A-Za-z0-9]{16,} | SG\.[\w-]{16,}\.[\w-]{16,} | do[opr]_v1_[0-9a-f]{32,}
        | AIza[\w-]{30,} | ya29\.[\w.-]{16,} | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{30,} | pnu_[A-Za-z0-9]{16,}
        | bpt_[\w-]{30,} | eyJ[\w-]{6,}\.eyJ[\w-]{6,}(?:\.[\w-]*)?
    )"""
PARAMETER = (
    r"sig|signature|token|[\w.-]*[_-]token|api[_-]?key|key|secret|client[_-]?secret|password|passwd|pwd|auth|sas|"
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|googleaccessid"
)
FIELD = (
    r"password|passwd|secret|api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key|auth[_-]?string|"
    r"(?:access|auth|refresh|id|api|session|bearer|hf|hub|github)[_-]?token|(?<![\w-])token"
)
MIXED = r"(?=[^\s\"',;]{0,99}[A-Za-z])(?=[^\s\"',;]{0,99}\d)"  # letters and digits: neither a word nor a number
IN_TEXT = (  # keep the group, redact the rest of the match
    r"(?i)(hooks\.slack\.com/\w+/|discord(?:app)?\.com/api/webhooks/|webhook\.office\.com/\w+/)[\w/@-]+",
    r"(api\.telegram\.org/bot)[\w:-]+",
    r"(?<=://)()[^\s/:@\"'<>?#]*:(?!\d+[/?#])(?:(?!://)[^\s\"'<>])*(?=@)",  # greedy: a password may hold an @
    r"(?<=://)()[^\s/:@\"'<>?#]{16,}(?=@)",
    rf"(?i)([?&;](?:{PARAMETER})=)[^\s&;\"'<>#)]+",
    r"(?i)((?:proxy-)?authorization(?:[\"']?\s*[:=]|[\"'],)\s*b?[\"']?)(?:[a-z][\w-]*[ \t]+)?[^\s\"',;]+",
    r"(?i)((?:api-key|private-token|\bx-[\w-]{0,40}token)[\"']?\s*:\s*[\"']?)[^\s\"',;]+",
    r"(?i)(\b(?:set-)?cookie[\"']?\s*:\s*[\"']?)(?=[^\s=\"']{1,99}=)[^\r\n\"']+",
    r"(?i)(\bbearer\s+)(?=[\w.~+/-]*[\d=._~+/]|[\w.~+/-]{20})[\w.~+/=-]{6,}",
    r"(\b[Bb]asic\s+)(?=[A-Za-z0-9+/]*(?:[0-9+/=]|[a-z][A-Z]))[A-Za-z0-9+/]{8,}={0,2}",
    rf"(?i)((?:{FIELD}):[ \t]+[\"']?){MIXED}[^\s\"',;]{{8,}}",
    rf"(?i)(--(?:[\w-]{{1,40}}-)?(?:password|secret|token|key)(?:=|\s+)[\"']?){MIXED}[^\s\"',;]{{8,}}",
    rf"(?i)((?:{FIELD})(?:\\?[\"']?=|\\?[\"']:\s*)\\?[\"']?)(?!null\b|none\b|true\b|false\b)[^\s\"',;&)}}\]]+",
)
AWS_SECRET = r"(?<![A-Za-z0-9/+=_-])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_-])"
FREE_TEXT = {  # keys whose values are free text
    *("message", "hint", "reason", "sentence", "path", "heldout", "address", "prompt", "answer", "reference", "expect"),
    *("system", "license", "pattern"),
}
PLACE = "place"  # a file's path: not text, even with a space in it
_kept: set[str] = set()  # module state: redacts all log records and errors of the process, also of libraries


def keep_secret(value: str) -> None:
    """Also redact this secret, from a file, a prompt or a service, for the rest of the process."""
    _kept.add(value)


def is_weak(value: str) -> bool:
    """Whether a secret is too short, too uniform or too word-like to be replaced in text without false matches."""
    return (
        len(value) < SHORTEST
        or len(set(value)) < FEWEST_CHARACTERS
        or re.fullmatch(rf"[A-Za-z]?[a-z]{{,{LONGEST_WORD}}}|[A-Z]+|\d{{,11}}", value) is not None
    )


def secrets_by_name() -> dict[str, str]:
    """Environment variables whose names say that they hold a secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if value.strip() and re.search(SECRET_NAME, name) and not re.search(NO_SECRET_NAME, name)
    }


def weak_secrets() -> list[str]:
    """Environment variables whose secret is too weak to be redacted by its value."""
    return sorted(name for name, value in secrets_by_name().items() if is_weak(value))


def blank_secrets(text: str) -> str:
    """The text with `***` for every secret of the environment and everything that looks like a secret."""
    for value in values():
        if value in text:
            text = text.replace(value, BLANK)
    text = blank_tokens(text)
    for pattern in IN_TEXT:
        text = re.sub(pattern, lambda found: found[1] + BLANK, text)
    return re.sub(AWS_SECRET, lambda found: BLANK if is_random(found[0]) else found[0], text)


def excerpt(text: str, length: int) -> str:
    """The start of a service's reply on one line, redacted before it is cut so that no part of a secret remains."""
    return " ".join(blank_secrets(text).split())[:length]


def blank_tokens(text: str) -> str:
    """The value with private keys and tokens of known services redacted."""
    return re.sub(TOKEN, BLANK, re.sub(PRIVATE_KEY, BLANK, text))


def values() -> list[str]:
    """All secret values to replace, in all their encodings, longest first."""
    named = secrets_by_name()
    known = {*named.values(), *_kept}
    known |= {value.partition(":")[2] for name, value in named.items() if "AUTH" in name.upper()}  # USER:PASSWORD
    known |= {found for value in os.environ.values() for found in re.findall(IN_AN_ADDRESS, value)}
    known |= {line.strip() for value in known if "\n" in value for line in value.splitlines()}
    found = {form for value in known if not is_weak(value.strip()) for form in forms(value.strip())}
    return sorted(found, key=len, reverse=True)


def forms(value: str) -> Iterator[str]:
    """A secret, and its forms in URLs, JSON and Python literals."""
    yield value
    yield from (quote(value), quote(value, safe=""), quote_plus(value))
    yield from (json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])
    for _ in range(DEEPEST):
        value = json.dumps(value)[1:-1]
        yield value


def is_random(text: str) -> bool:
    """Whether 40 characters look like an AWS secret key, not like a commit hash, a path or a camel-case name."""
    kinds = (str.isupper, str.islower, str.isdigit)
    upper, lower, digits = (sum(map(kind, text)) for kind in kinds)
    return upper >= 8 and lower >= 8 and digits >= 1 and text.count("/") <= 4


def blank_address(address: str) -> str:
    """The URL with its user and password redacted, and nothing else."""
    return re.sub(r"(?<=://)[^/\s]*(?=@)", BLANK, address)


def blank_json(value: "JsonValue", name: str = "") -> "JsonValue":
    """The document with secrets redacted in its text, and all other values unchanged.

    Text is any string with a space or a URL in it, and any string under a key in FREE_TEXT. Status, ids, digests, keys,
    names, numbers and artifact paths are not text: a program reads them again.
    """
    match value:
        case str():
            return blank_item(name, value)
        case dict():
            place = (
                PLACE if "digest" in value else "path"
            )  # beside a digest, `path` is the location of a file or artifact
            return {key: blank_json(item, place if key == "path" else key) for key, item in value.items()}
        case list():
            return [blank_json(item, name) for item in value]
        case _:
            return value


def blank_item(name: str, text: str) -> str:
    """A named string, redacted if it is text; otherwise only without tokens of known services."""
    last = name.rpartition(".")[2]
    is_text = last in FREE_TEXT or "://" in text or (last != PLACE and re.search(r"\s", text))
    return blank_secrets(text) if is_text else blank_tokens(text)


class BlankRecord(logging.LogRecord):
    """A log record with secrets redacted, for every handler of this process, including those of libraries."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.logged = self.msg
        if self.exc_info and self.exc_info[0]:
            self.exc_text = blank_trace(self.exc_info)  # formatters use it if set

    def getMessage(self) -> str:
        said = super().getMessage()
        return blank_secrets(said) if self.msg is self.logged else said  # else a formatter has already set msg


def blank_trace(error: tuple[type[BaseException], BaseException, TracebackType | None] | Any) -> str:
    """The formatted traceback with secrets redacted."""
    return blank_secrets("".join(traceback.format_exception(*error))).rstrip("\n")


def blank_logs() -> None:
    """Redact secrets in everything this process logs from now on."""
    logging.setLogRecordFactory(BlankRecord)
