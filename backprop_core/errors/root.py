"""BackpropError, the base class of all coded errors, and lookup of an error class by its code."""

from typing import ClassVar

from backprop_core.runtime.redaction import blank_secrets

KINDS = ("INPUT", "UI", "CONFIG", "DEP", "RUNTIME", "STATE")


class BackpropError(Exception):
    """Base class of all coded errors. `message` says what failed, `hint` what to do; secrets are redacted in both."""

    code: ClassVar[str]
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str) -> None:
        self.message, self.hint = blank_secrets(message), blank_secrets(hint)
        super().__init__(self.message)
        self.run_id: str | None = None  # the run that failed with it, if one had started

    def __str__(self) -> str:
        first, _, _ = self.hint.partition("\n")
        return f"[{self.code}] {self.message}; {first}"  # Prefect shows this for a failed flow run

    def __reduce__(self) -> tuple[object, ...]:
        return (rebuild, (self.code, self.message, self.hint))


def all_errors() -> dict[str, type[BackpropError]]:
    """All error classes by code, INPUT_ first, STATE_ last."""
    every = sorted(BackpropError.__subclasses__(), key=lambda error: KINDS.index(error.code.partition("_")[0]))
    return {error.code: error for error in every}


def rebuild(code: str, message: str, hint: str) -> BackpropError:
    """Recreate an error that another process reported."""
    known = all_errors()
    return known.get(code, known["RUNTIME_UNEXPECTED"])(message, hint=hint)
