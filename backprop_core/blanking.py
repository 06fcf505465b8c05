"""Secrets in texts that people will see."""

import os
import re

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|AUTH_STRING|CREDENTIAL", re.IGNORECASE)
SECRET_SHAPE = re.compile(r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|(?<=://)[^/\s@:]*:[^/\s@]+(?=@)")


def blank_secrets(text: str) -> str:
    """`text` with the values of secret environment variables, tokens and URL passwords replaced by `***`."""
    values = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 6}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return SECRET_SHAPE.sub("***", text)
