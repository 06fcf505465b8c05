"""Secrets: blanked wherever a person reads, and nowhere that a program reads again."""

import base64
import io
import json
import logging
import random
import string
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from backprop_core.errors import ConfigInvalid, all_errors
from backprop_core.runtime import redaction
from backprop_core.runtime.redaction import (
    blank_address,
    blank_json,
    blank_logs,
    blank_secrets,
    excerpt,
    is_weak,
    keep_secret,
    weak_secrets,
)
from backprop_core.schema.refs import ErrorRecord, RunResult
from backprop_core.schema.specs import DatasetSpec, RunSpec

CANARY = "Zx9-canary&4711/="
SHAPES = {  # none of these is anyone's
    "a bearer token": ("Authorization: Bearer ab12.cd-34_ef~56", "ab12.cd-34_ef~56"),
    "a bearer token in lower case": ("authorization: bearer deadbeef01", "deadbeef01"),
    "a bearer token in JSON": ('{"Authorization": "Bearer ab12cd34"}', "ab12cd34"),
    "a bearer token alone": ("said Bearer 3f2a9c to it", "3f2a9c"),
    "HTTP's Basic": ("Proxy-Authorization: Basic YW5uYTpzZWNyZXQ=", "YW5uYTpzZWNyZXQ"),
    "Basic alone": ("sent Basic YW5uYTpzZWNyZXQ= there", "YW5uYTpzZWNyZXQ"),
    "a scheme of its own": ("Authorization: AWS4-HMAC-SHA256 Credential=x", "Credential=x"),
    "an API key's header": ("x-api-key: q1w2e3r4", "q1w2e3r4"),
    "GitHub": ("ghp_" + "a1B2" * 9, "a1B2a1B2"),
    "GitHub, an installation's": ("ghs_" + "a1B2" * 9, "a1B2a1B2"),
    "GitHub, OAuth": ("gho_" + "a1B2" * 9, "a1B2a1B2"),
    "GitHub, fine-grained": ("github_pat_" + "11ABCDEFG0" * 6, "11ABCDEFG0"),
    "GitLab": ("glpat-" + "xY1-" * 5, "xY1-xY1"),
    "AWS, a key's id": ("AKIA" + "IOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
    "AWS, a session's key id": ("ASIA" + "IOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
    "AWS, a secret key": ("got wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
    "AWS, a named secret key": ("aws_secret_access_key=aaaa/bbbb", "aaaa/bbbb"),
    "Hugging Face": ("hf_" + "a1B2c3D4" * 4, "a1B2c3D4"),
    "OpenAI": ("sk-proj-" + "a1B2c3D4_-" * 4, "a1B2c3D4"),
    "Slack": ("xoxb-123456789012-abcdefghij", "abcdefghij"),
    "Slack's webhook": ("https://hooks.slack.com/services/T0AA/B0BB/cCdD1234", "cCdD1234"),
    "Google": ("AIza" + "SyA-1234567890abcdefghijklmnopqrstu", "1234567890abc"),
    "a JSON web token": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s1gn4tur3", "s1gn4tur3"),
    "a private key": ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
    "half a private key": ("-----BEGIN PRIVATE KEY-----\nMIIabc", "MIIabc"),
    "a password in an address": ("https://anna:hunter22@host/x", "hunter22"),
    "one with an @": ("postgresql+psycopg2://anna:hun@ter22@host/x", "ter22"),
    "a user that is a token": ("https://0123456789abcdef0123@host/x", "0123456789abcdef"),
    "a signed address": ("https://host/x.jsonl?sp=r&sig=abc%2Fdef&se=1", "abc%2Fdef"),
    "S3's signed address": ("https://b.s3/x?X-Amz-Credential=c1d2&X-Amz-Signature=f00f", "f00f"),
    "a token's parameter": ("https://host/x?access_token=f00f", "f00f"),
    "a key's parameter": ("https://host/x?a=b&key=f00f", "f00f"),
    "a field": ("connect(password='hunter2', host='x')", "hunter2"),
    "a field of JSON": ('{"client_secret": "hunter2", "x": 1}', "hunter2"),
    "an address with a / in its password": ("postgresql://anna:hun/ter22@host:5432/x", "ter22"),
    "a flag": ("ran convert --token a1b2c3d4e5 --outfile x", "a1b2c3d4e5"),
    "a flag with =": ("ran prefect --api-key=a1b2c3d4e5", "a1b2c3d4e5"),
    "a field of YAML": ("auth:\n  password: hunter22x\n", "hunter22x"),
    "a flag of a command": ("tool --token a1B2c3D4e5 --rows 3", "a1B2c3D4e5"),
    "a flag with a longer name": ("tool --my-service-token a1B2c3D4e5 --rows 3", "a1B2c3D4e5"),
    "a flag with an equals sign": ("tool --github-api-key=a1B2c3D4e5", "a1B2c3D4e5"),
    "a cookie": ("Cookie: session=abcdef0123; other=xyz0123", "xyz0123"),
    "a cookie that is set": ("set-cookie: prefect=abcdEF0123; Path=/", "abcdEF0123"),
    "a token's header": ("X-Auth-Token: gAAAAABhab", "gAAAAABhab"),
    "GitLab's header": ("PRIVATE-TOKEN: abcdEFGH12", "abcdEFGH12"),
    "a header in a tuple": ("('Authorization', 'Token 0a1b2c3d4e5f')", "0a1b2c3d"),
    "the pages": ("bpt_" + "a1B2c3D4" * 5, "a1B2c3D4"),
    "Groq": ("gsk_" + "a1B2c3D4" * 5, "a1B2c3D4"),
    "SendGrid": ("SG." + "a1B2c3D4" * 3 + "." + "x1Y2z3W4" * 5, "x1Y2z3W4"),
    "Telegram's bot": (
        "https://api.telegram.org/bot123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1/sendMessage",
        "AAHdq",
    ),
    "Teams' webhook": ("https://x.webhook.office.com/webhookb2/aa-bb@cc/IncomingWebhook/dead42beef/gg", "dead42beef"),
    "Azure's key": ("AccountName=x;AccountKey=abcDEF1234567890==;EndpointSuffix=y", "abcDEF12345"),
    "a field of JSON in JSON": (r'"{\"password\": \"hunter2\"}"', "hunter2"),
}
HARMLESS = (
    "Bearer tokens are asked for",
    "basic training of a multi-task-training-experiments-are-long model",
    "https://host:8080/data@v2/x?revision=main&page=2",
    "commit 9a1b2c3d4e5f60718293a4b5c6d7e8f901234567 in /home/user/Data1/some/deep/path/of/mine/x/y",
    "token_accuracy=0.5, eos_token=<|im_end|>, max_new_tokens=128",
    "set BACKPROPAGATE_AUTH_PASSWORD or BACKPROPAGATE_AUTH_PASSWORD_FILE",
    "the password: ask for it",
    "password: anything, token: 5 of 10, secret: true, per token: 0.3 s",
    "http://host:8080/data@v2 and http://host:8080/a@b",
    "--token TOKEN, --password-file FILE, --max-token 12345678",
    "7f" * 32,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    """No secret of the machine's own, and none of an earlier test."""
    for name in redaction.secrets_by_name():
        monkeypatch.delenv(name)
    monkeypatch.setattr(redaction, "_kept", set())


@pytest.mark.parametrize("text, secret", SHAPES.values(), ids=SHAPES)
def test_what_looks_like_a_secret_is_blanked(text, secret):
    """Tokens of known services, authorization headers, private keys and passwords in addresses, whoever sent them."""
    said = blank_secrets(f"it failed: {text}\nsee the log")
    assert secret not in said and "***" in said and said.startswith("it failed")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    """Digests, paths, options, and words that only sound like it."""
    assert blank_secrets(text) == text


WRITTEN = {
    "as it is": str,
    "in an address": lambda secret: quote(secret, safe=""),
    "in JSON": lambda secret: json.dumps(secret),
    "in Python": repr,
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("secret", [CANARY, 'with "quotes" and \\', "höchst geheim ß", "two\nlines-of-a-secret-value"])
def test_a_secret_of_the_environment_is_blanked_however_it_is_written(monkeypatch, write, secret):
    """By its exact value, and as addresses, JSON and Python spell it."""
    monkeypatch.setenv("MY_API_KEY", secret)
    said = blank_secrets(f"sent {write(secret)} there")
    assert said.startswith("sent ") and said.endswith(" there") and "***" in said
    assert not any(part in said for part in secret.split("\n"))


def test_the_password_of_an_auth_string_and_of_an_address_is_a_secret(monkeypatch):
    """USER:PASSWORD is one, and so is the PASSWORD alone, wherever a service repeats it."""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "anna:horse-battery-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:staple%2Fcorrect@host")
    assert blank_secrets("no user anna with horse-battery-1, staple%2Fcorrect") == "no user anna with ***, ***"


def test_a_secret_from_a_file_or_a_service_is_blanked_too():
    """Whatever the environment does not hold is told to `keep_secret`."""
    assert blank_secrets(CANARY) == CANARY
    keep_secret(CANARY)
    assert blank_secrets(CANARY) == "***"


WEAK = ("finished", "default", "train", "Support", "1234567", "131072", "short", "RUNNING", "0" * 25, "-=" * 9)


@pytest.mark.parametrize("word", WEAK)
def test_a_weak_secret_is_named_and_garbles_no_text(monkeypatch, word):
    """A word or a number as a password is not searched for: what is missing would tell it. `doctor` names it."""
    monkeypatch.setenv("BACKPROPAGATE_AUTH_PASSWORD", word)
    text = f"run {word} of line {word}"
    assert is_weak(word) and blank_secrets(text) == text and weak_secrets() == ["BACKPROPAGATE_AUTH_PASSWORD"]
    assert blank_secrets(f"https://anna:{word}@host") == "https://***@host"


@pytest.mark.parametrize(
    "name", ["MAX_TOKENS", "TOKENIZERS_PARALLELISM", "BACKPROPAGATE_AUTH_PASSWORD_FILE", "TOKEN_URL"]
)
def test_a_variable_that_only_sounds_like_a_secret_is_none(monkeypatch, name):
    """Counts, switches, files and addresses."""
    monkeypatch.setenv(name, "/run/secrets/password-file")
    assert blank_secrets("cannot read /run/secrets/password-file") == "cannot read /run/secrets/password-file"


def result() -> RunResult:
    """A run whose text holds the canary wherever text can."""
    spec = RunSpec(datasets=[DatasetSpec(path=f"https://host/x.jsonl?x={CANARY}")])
    return RunResult(
        run_id="ab" * 16,
        line="support",
        status="finished",
        reason=f"approved: {CANARY}",
        spec=spec.model_dump(mode="json"),
        error=ErrorRecord(code="RUNTIME_GPU_OOM", message=f"sent {CANARY}", hint=CANARY, retryable=True),
        merged={"digest": "cd" * 32, "path": "/home/me/store/artifacts/cd"},
        stages=[{"stage": "train", "key": "ef" * 32, "cached": False, "seconds": 1.5, "digest": None}],
    )


def leaves(value: Any) -> Iterator[str]:
    """Every string of a document, keys too."""
    match value:
        case dict():
            yield from value
            yield from (text for item in value.values() for text in leaves(item))
        case list():
            yield from (text for item in value for text in leaves(item))
        case str():
            yield value


def test_text_in_a_record_is_blanked(monkeypatch):
    """Messages, reasons and addresses; the rest of the record is as it was."""
    monkeypatch.setenv("MY_API_KEY", CANARY)
    said = blank_json(result().model_dump(mode="json"))
    assert CANARY not in json.dumps(said) and said["error"]["message"] == "sent ***"
    assert said["spec"]["datasets"][0]["path"] == "https://host/x.jsonl?x=***"
    kept = RunResult.model_validate(said)
    assert kept.model_copy(update={"error": None, "reason": None, "spec": {}}) == result().model_copy(
        update={"error": None, "reason": None, "spec": {}}
    )


def test_no_secret_breaks_a_record_that_is_read_again(monkeypatch):
    """Whatever word or number of a record is a password: the JSON with it is the JSON without it."""
    document = result().model_dump(mode="json")
    plain = blank_json(document)
    for secret in sorted({*leaves(document), "1.5", "true", "null", "format", "digest", "ab" * 4, "cdcdcdcd"}):
        if secret and CANARY not in secret:
            monkeypatch.setenv("BACKPROPAGATE_AUTH_PASSWORD", secret)
            again = json.loads(json.dumps(blank_json(document)))
            assert {**again, "reason": 0, "spec": 0} == {**plain, "reason": 0, "spec": 0}, secret
            RunResult.model_validate(again)
            RunSpec.model_validate(again["spec"])


def test_the_place_of_a_file_is_no_text(monkeypatch):
    """The path beside a digest stays, with a space and a secret in it; an address there is blanked."""
    monkeypatch.setenv("MY_API_KEY", "horse-battery-1")
    path = {"digest": "ab" * 32, "path": "/home/my horse-battery-1/store/ab"}
    assert blank_json([path]) == [path]
    assert blank_json({"digest": "ab" * 32, "path": "https://h/x?sig=f00"})["path"] == "https://h/x?sig=***"
    assert blank_json({"path": "/home/horse-battery-1/x.jsonl"}) == {"path": "/home/***/x.jsonl"}


def test_an_address_is_compared_without_its_password(monkeypatch):
    """And only without it: no other secret changes which MLflow is meant."""
    monkeypatch.setenv("MY_API_KEY", "host-name-9")
    assert blank_address("https://anna:x@host-name-9/y") == "https://***@host-name-9/y"
    assert blank_address("sqlite:////home/host-name-9/mlflow.db") == "sqlite:////home/host-name-9/mlflow.db"


def test_no_half_of_a_secret_is_left_where_a_text_is_cut():
    """Cut only after blanking."""
    text = "x" * 15 + " hf_" + "a1B2c3D4" * 4
    assert [excerpt(text, length) for length in (16, 20, 40)] == ["x" * 15 + " ", "x" * 15 + " ***", "x" * 15 + " ***"]


@pytest.mark.parametrize("error", all_errors().values(), ids=lambda error: error.code)
def test_no_error_carries_a_secret(monkeypatch, error):
    """Whoever shows, keeps, pickles or sends it: message and hint are blanked when it is made."""
    monkeypatch.setenv("MY_API_KEY", CANARY)
    made = error(f"at https://u:pw@host with {CANARY}", hint=f"not with {CANARY}")
    assert CANARY not in f"{made} {made!r} {made.message} {made.hint} {made.args}" and "pw@" not in str(made)


def test_nothing_that_is_logged_carries_a_secret(monkeypatch):
    """By any logger to any handler of the process, with its traceback."""
    monkeypatch.setenv("MY_API_KEY", CANARY)
    before, stream = logging.getLogRecordFactory(), io.StringIO()
    logger, handler = logging.getLogger("prefect.flow_runs.x"), logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        blank_logs()
        try:
            raise ValueError(f"sent {CANARY}")
        except ValueError:
            logger.exception("it failed at %s", {"path": f"https://host/?sig={CANARY}"})
    finally:
        logging.setLogRecordFactory(before)
        logger.removeHandler(handler)
    text = stream.getvalue()
    assert CANARY not in text and "ValueError: sent ***" in text and "it failed at" in text


def test_basic_authorization_of_a_secret_is_blanked(monkeypatch):
    """A password that is sent is base64."""
    sent = base64.b64encode(b"anna:horse-battery-1").decode()
    assert sent.rstrip("=") not in blank_secrets(f"{{'authorization': 'Basic {sent}'}}")


def test_any_text_can_be_blanked():
    """No text, and no secret, makes it fail or take long."""
    made = random.Random(7)
    letters = string.printable + "é\u2028:/@?=&-_"
    for _ in range(300):
        text = "".join(made.choices(letters, k=made.randrange(400)))
        keep_secret("".join(made.choices(letters, k=12)))
        assert isinstance(blank_secrets(text), str)


PATIENCE = """
import time
from backprop_core.runtime.redaction import blank_secrets
parts = "a|://a:|-----BEGIN PRIVATE KEY|Bearer |password=|a-|https://x|?a_|eyJ|A1b2|x-|://|hf_|Basic A|key: "
parts += "|--token=|cookie:|SG.a-"
for text in [part * (100_000 // len(part)) for part in parts.split("|")] + ["https://" + "x" * 100_000]:
    begin = time.monotonic()
    blank_secrets(text)
    assert time.monotonic() - begin < 5, text[:30]
"""


def test_long_text_takes_no_time():
    """No pattern backtracks without end."""
    subprocess.run([sys.executable, "-c", PATIENCE], check=True, timeout=100)


def test_a_coded_error_keeps_what_it_says():
    """Without a secret nothing is changed."""
    assert ConfigInvalid("training.lora.rank=0 is not possible", hint="1 to 1024").message.endswith(
        "=0 is not possible"
    )


@pytest.mark.parametrize("name", ["MYSQL_PWD", "GIT_PASS", "PASSPHRASE", "KEY_PASSPHRASE", "SMTP_PASS"])
def test_other_names_of_passwords(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A variable that is called a pass, a pwd or a passphrase holds a secret; where a shell is does not."""
    monkeypatch.setenv(name, "Tr0ub4dor&3x")
    monkeypatch.setenv("PWD", "/some/place1")
    monkeypatch.setenv("OLDPWD", "/some/place2")
    assert blank_secrets("Tr0ub4dor&3x in /some/place1, /some/place2") == "*** in /some/place1, /some/place2"


def test_a_secret_in_json_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escaped once or twice, it is still that secret."""
    monkeypatch.setenv("DB_PASSWORD", 's3"cr\\et9q')
    once = json.dumps({"x": 's3"cr\\et9q'})
    for text in (once, json.dumps(once), json.dumps([json.dumps(once)])[1:-1]):
        assert "cr" not in blank_secrets(text)


def test_a_password_with_a_slash_in_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a secret by its value too."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://anna:hun/ter22x@host:5432/x")
    assert blank_secrets("hun/ter22x is wrong") == "*** is wrong"
