"""The root of all errors that a user can meet."""

from typing import ClassVar

from backprop_core.runtime.redaction import blank_secrets

KINDS = ("INPUT", "UI", "CONFIG", "DEP", "RUNTIME", "STATE")


class BackpropError(Exception):
    """Root of all coded errors. `message` says what and which, `hint` what to do; secrets are blanked in both."""

    code: ClassVar[str]
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str) -> None:
        self.message, self.hint = blank_secrets(message), blank_secrets(hint)
        super().__init__(self.message)
        self.run_id: str | None = None  # the run that it ended, if it had started

    def __str__(self) -> str:
        first, _, _ = self.hint.partition("\n")
        return f"[{self.code}] {self.message}; {first}"  # what Prefect shows of a failed flow run

    def __reduce__(self) -> tuple[object, ...]:
        return (rebuild, (self.code, self.message, self.hint))


def all_errors() -> dict[str, type[BackpropError]]:
    """Every code and its class, INPUT_ first, STATE_ last."""
    every = sorted(BackpropError.__subclasses__(), key=lambda error: KINDS.index(error.code.partition("_")[0]))
    return {error.code: error for error in every}


def rebuild(code: str, message: str, hint: str) -> BackpropError:
    """The error that another process reported."""
    known = all_errors()
    return known.get(code, known["RUNTIME_UNEXPECTED"])(message, hint=hint)
