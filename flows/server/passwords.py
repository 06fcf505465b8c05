"""Passwords as they are kept: the scrypt hash, its salt and its cost, so that the cost can be raised."""

import base64
import hashlib
import hmac
import os
import unicodedata

from backprop_core.errors import ConfigInvalid
from backprop_core.runtime.redaction import is_weak

COST = (14, 8, 5)  # log2 of N, r, p: 16 MiB and a quarter of a second; OWASP's Password Storage Cheat Sheet
MEMORY = 64 * 2**20  # bytes that OpenSSL may take


def nobodys() -> str:
    """What no password has as its hash, at the same cost."""
    return "$".join(["scrypt", *map(str, COST), *(base64.b64encode(bytes(size)).decode() for size in (16, 32))])


def hashed(secret: str, cost: tuple[int, int, int] = COST) -> str:
    """The hash of a password with a new salt: `scrypt$14$8$5$SALT$HASH`."""
    salt = os.urandom(16)
    text = (base64.b64encode(part).decode() for part in (salt, derived(secret, salt, cost)))
    return "$".join(["scrypt", *map(str, cost), *text])


def is_right(secret: str, kept: str) -> bool:
    """Whether the hash is that of this password. Takes the same time for every answer."""
    _, log_n, r, p, salt, expected = kept.split("$")
    found = derived(secret, base64.b64decode(salt), (int(log_n), int(r), int(p)))
    return hmac.compare_digest(found, base64.b64decode(expected))


def derived(secret: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    """scrypt of a password; the same however a keyboard composes its accents."""
    log_n, r, p = cost
    text = unicodedata.normalize("NFC", secret).encode("utf-8", "surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=2**log_n, r=r, p=p, maxmem=MEMORY, dklen=32)


def check_strength(name: str, secret: str) -> None:
    """Raise ConfigInvalid for a password that can be guessed, or that could not be blanked in logs."""
    if is_weak(secret):
        raise ConfigInvalid(
            f"the password for {name} is too short, too uniform, or a single word or number",
            hint="use at least 8 characters, 4 of them different, and not only letters or digits: logs redact it then",
        )
