"""Errors: one class, one code; nothing secret in what is shown."""

import pickle
import re

import pytest

from backprop_core.errors import BackpropError, RankMismatch, Unexpected, all_errors, rebuild
from backprop_core.runtime.redaction import blank_secrets

FAMILIES = ("INPUT_", "CONFIG_", "DEP_", "RUNTIME_", "STATE_", "UI_")


@pytest.mark.parametrize("error", all_errors().values(), ids=lambda error: error.code)
def test_every_error_has_a_code_of_its_family_and_says_what_it_is(error):
    """A code is upper case, of a known family, and explained in one sentence."""
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)+", error.code)
    assert error.code.startswith(FAMILIES)
    assert error.__doc__ and error.__doc__.endswith(".")
    assert error.exit_status in (1, 2, 3, 130)


def test_codes_are_unique():
    """No two classes share a code."""
    assert len(all_errors()) == len(BackpropError.__subclasses__())


def test_an_error_survives_the_way_between_processes():
    """What the worker reports is raised by the parent as the same class with the same words."""
    error = rebuild("CONFIG_RANK_MISMATCH", "cannot merge rank 8 into rank 4", "train with rank 4")
    assert type(error) is RankMismatch
    assert type(pickle.loads(pickle.dumps(error))) is RankMismatch  # noqa: S301 - our own bytes, of a moment ago
    assert type(rebuild("NO_SUCH_CODE", "x", "y")) is Unexpected


def test_secrets_are_blanked(monkeypatch):
    """Values of secret variables, tokens and passwords in addresses do not reach an output."""
    monkeypatch.setenv("MY_API_KEY", "correct horse")
    monkeypatch.setenv("HOME_TOWN", "Oslo, Norway")
    text = "correct horse at https://anna:hunter22@example.org with hf_abcdefghijklmnopqrstu in Oslo, Norway"
    assert blank_secrets(text) == "*** at https://***@example.org with *** in Oslo, Norway"
