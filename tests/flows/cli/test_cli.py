"""The command line: what is said where, and with which exit status."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cyclopts import App

from backprop_core.errors import all_errors
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import TrainSpec
from flows.cli import main
from flows.cli.spec_fields import PATTERNS, fields_of, spec_fields
from tasks.runs.doctor import converter
from tests.backprop_core import stand_in_converter

Capture = pytest.CaptureFixture[str]
EXPECTED = r"run_started run_id=|training runs on the CPU|^\w+.* \([\d.]+ s\)$"  # on stderr, when all is well


@pytest.fixture(autouse=True)
def same_signals(home: Path) -> Iterator[None]:
    """An empty home; signals are afterwards what they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def said(arguments: Sequence[str], capsys: Capture) -> tuple[int, str, list[str]]:
    """Exit status, stdout and the lines of stderr."""
    status = main.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def test_help_loads_nothing_heavy() -> None:
    """`backprop --help` loads neither torch nor transformers nor prefect nor mlflow, nor what reads specs."""
    heavy = ["torch", "transformers", "prefect", "mlflow", "pydantic", "pydantic_settings", "structlog", "yaml"]
    loaded = f"[m for m in {heavy} if m in sys.modules]"
    code = f"import sys; from flows.cli.main import main; main(['--help']); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "multi-run" in done.stdout and done.stderr == ""


def test_the_history_loads_no_client_of_servers(home: Path) -> None:
    """Listing runs imports neither the Hub's client nor what estimates a training."""
    heavy = ["huggingface_hub", "httpx", "backprop_core.training.presets", "torch", "prefect"]
    loaded = f"[m for m in {heavy} if m in sys.modules]"
    code = f"import sys; from flows.cli.main import main; main(['list-runs']); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


@pytest.mark.parametrize("verb", ["train", "multi-run", "retrain --line x", "sweep --set training.seed=1,2"])
def test_a_command_reads_its_data_before_it_imports_prefect(home: Path, verb: str) -> None:
    """So its server starts meanwhile, and bad data is refused at once."""
    words = [*verb.split(), "--data", "nothing.jsonl"]
    loaded = "[m for m in ('prefect', 'mlflow', 'torch') if m in sys.modules]"
    code = f"import sys; from flows.cli.main import main; main({words}); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" and "INPUT_NOT_FOUND" in done.stderr


def test_help_of_a_verb_comes_from_the_specs(capsys: Capture) -> None:
    """A flag's help is its field's, with range and default; every verb has help."""
    status, out, _ = said(["train", "--help"], capsys)
    text = " ".join(out.replace("│", " ").split())
    assert status == 0 and "Examples per optimizer step" in text and "[default: 0]" in text
    assert "From 1 to 65536. [default: chosen]" in text
    for verb in [*main.verbs(), "data", "store"]:
        assert said([verb, "--help"], capsys)[0] == 0


@pytest.mark.parametrize("verb", ["train", "multi-run", "retrain"])
def test_a_flag_shows_the_type_of_its_field(verb: str, capsys: Capture) -> None:
    """A flag of a number says so, and the others stay text: what the types of the fields are is read from the specs."""
    _, out, _ = said([verb, "--help"], capsys)
    shown = dict(re.findall(r"--([a-z-]+) (INT|FLOAT|STR)\b", out))
    fields = TrainSpec.model_fields
    types = {name: fields[name.replace("-", "_")].annotation for name in ("epochs", "batch-size", "seed")}
    assert {name: shown[name] for name in types} == {name: kind.__name__.upper() for name, kind in types.items()}
    assert (shown["rows"], shown["steps"], shown["line"], shown["model"]) == ("INT", "INT", "STR", "STR")


def leaves(app: App) -> Iterator[App]:
    """Every verb, those of `data` and `store` too."""
    for name in app:
        if not name.startswith("-"):
            yield from [app[name]] if app[name].default_command else leaves(app[name])


def test_every_verb_has_an_example_that_parses() -> None:
    """The last line of a verb's help is a command that the command line takes, of that verb."""
    commands = [(verb.name[0], str(verb.help_epilogue).removeprefix("Example: ")) for verb in leaves(main.build())]
    for name, command in commands:
        program, *words = shlex.split(command)
        assert program == "backprop" and name in words[:2]
        main.build().parse_args(words, exit_on_error=False, print_error=False)
    assert len(commands) == len(main.verbs()) + sum(len(group.verbs) for group in main.GROUPS.values())


def test_no_help_has_a_regular_expression(capsys: Capture) -> None:
    """What a flag takes is said in words; the check sees the patterns, which the schemas do have."""
    shown = "".join(said([*name.split(), "--help"], capsys)[1] for name in [*main.verbs(), "store prune"])
    allowed = [field.allowed for field in [*spec_fields().values(), *fields_of(Settings).values()]]
    patterns = re.compile(r"\^\[|\]\{\d|\[\^|\\[sd]\*|\$$", re.MULTILINE)
    assert patterns.search(shown) is None and [text for text in allowed if patterns.search(text)] == []
    assert all(patterns.search(pattern) for pattern in PATTERNS)


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["trian"], "CONFIG_INVALID", ["trian", "did you mean", "train"]),
        (["store", "chek"], "CONFIG_INVALID", ["chek", "backprop store check"]),
        (["store", "zzz"], "CONFIG_INVALID", ["zzz", "store has check, prune"]),
        (["train", "--dta", "a"], "CONFIG_INVALID", ["--dta", "did you mean --data"]),
        (["train", "--steps"], "CONFIG_INVALID", ["--steps has no value", "for example: backprop train --data"]),
        (["train", "a.jsonl"], "CONFIG_INVALID", ["a.jsonl", "for example: backprop train --data"]),
        (["show-run"], "CONFIG_INVALID", ["`backprop show-run` needs RUN_ID", "for example: backprop show-run RUN_ID"]),
        (["push", "x"], "CONFIG_INVALID", ["needs --repo", "for example: backprop push support --repo OWNER/NAME"]),
        (["list-runs", "--since", "soon"], "CONFIG_INVALID", ["--since takes a day, like 2026-01-31, not soon"]),
        (["list-runs", "--status", "done"], "CONFIG_INVALID", ["--status takes one of finished, unchanged"]),
        (["list-runs", "--limit", "0"], "CONFIG_INVALID", ["--limit 0", "> 0", "for example"]),
        (["list-runs", "--line", "a", "--line", "b"], "CONFIG_INVALID", ["--line is given twice"]),
        (["help", "trian"], "CONFIG_INVALID", ["trian", "did you mean", "train"]),
        (["diff-runs", "abc"], "CONFIG_INVALID", ["needs B"]),
        (["train"], "CONFIG_INVALID", ["no dataset", "--data"]),
        (["train", "--data", "a", "--steps", "x"], "CONFIG_INVALID", ["--steps", "an integer at least 1"]),
        (["train", "--data", "a", "--data", "b"], "CONFIG_INVALID", ["multi-run"]),
        (["train", "--data", "a", "--export", "q9"], "CONFIG_QUANTIZATION_UNKNOWN", ["q9", "q4_k_m"]),
        (["train", "--data", "a", "--config", "none.yaml"], "INPUT_NOT_FOUND", ["none.yaml"]),
        (["multi-run", "--data", "a", "--runs", "3"], "CONFIG_INVALID", ["--samples"]),
        (["multi-run", "--data", "a", "--runs", "0", "--samples", "2"], "CONFIG_INVALID", ["--runs"]),
        (["multi-run", "--data", "a", "--data", "b", "--runs", "2", "--samples", "2"], "CONFIG_INVALID", ["--runs"]),
        (["export", "abc", "--quantization", "q9"], "CONFIG_QUANTIZATION_UNKNOWN", ["q9"]),
        (["show-run", "abc"], "INPUT_REF_UNKNOWN", ["abc", "list-runs"]),
        (["list-runs", "--limit", "many"], "CONFIG_INVALID", ["--limit takes a whole number, like 10, not many"]),
    ],
)
def test_wrong_input_is_two_lines(words: list[str], code: str, parts: list[str], capsys: Capture) -> None:
    """Exit 1, nothing on stdout, two lines on stderr: the code with what and which, and what to do."""
    status, out, err = said(words, capsys)
    assert (status, out, len(err)) == (1, "", 2)
    assert err[0].startswith(f"[{code}] ") and [part for part in parts if part not in "\n".join(err)] == []


def test_failure_as_json(capsys: Capture) -> None:
    """With --json a failure is one document on stdout as well, and the two lines stay on stderr."""
    status, out, err = said(["train", "--data", "a", "--set", "training.stps=1", "--json"], capsys)
    error = json.loads(out)["error"]
    assert (status, len(err), error["code"]) == (1, 2, "CONFIG_INVALID")
    assert error["hint"] == err[1] and error["retryable"] is False


def test_traceback_only_with_verbose(capsys: Capture) -> None:
    """The two lines are the last even then."""
    assert "Traceback" not in "".join(said(["train"], capsys)[2])
    _, _, err = said(["train", "--verbose"], capsys)
    assert "Traceback" in "".join(err) and err[-2].startswith("[CONFIG_INVALID]")


def test_a_fault_of_ours_has_a_code() -> None:
    """What no code describes is RUNTIME_UNEXPECTED, exit 2."""
    coded = main.as_coded(ZeroDivisionError("here"))
    assert (coded.code, coded.exit_status, coded.message) == ("RUNTIME_UNEXPECTED", 2, "ZeroDivisionError: here")


def test_a_home_that_is_a_file_is_no_fault_of_ours(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is named, with what to do, exit 1."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "file"))
    status, out, err = said(["store", "check"], capsys)
    assert (status, out, len(err)) == (1, "", 2) and err[0].startswith("[CONFIG_PLACE_UNUSABLE]")
    assert str(tmp_path / "file") in err[0]


def test_secrets_in_an_error_are_blanked(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that somebody pasted into the wrong place is repeated nowhere."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    _, out, err = said(["train", "--data", "a", "--steps", "hf_" + "x" * 30, "--json", "--verbose"], capsys)
    assert "***" in out and "x" * 30 not in out + "\n".join(err)


def test_error_codes(capsys: Capture) -> None:
    """`info --error-codes` lists every code with its exit status and meaning."""
    _, out, _ = said(["info", "--error-codes", "--json"], capsys)
    assert [(row["code"], row["exit_status"]) for row in json.loads(out)] == [
        (code, error.exit_status) for code, error in all_errors().items()
    ]
    assert all(row["means"] for row in json.loads(out))


def test_info(capsys: Capture, home: Path) -> None:
    """`info` names versions and places, for people and as JSON."""
    _, out, _ = said(["info", "--json"], capsys)
    facts = json.loads(out)
    assert facts["home"] == str(home) and facts["BACKPROPAGATE_NAMESPACE"] == "backprop" and facts["prefect"]
    assert str(home) in said(["info"], capsys)[1]


def test_doctor(capsys: Capture, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that has to be put right makes exit 2 and is told with what to do; one that a run can do without, not."""
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    status, out, _ = said(["doctor", "--json"], capsys)
    parts = {part["name"]: part for part in json.loads(out)}
    assert (status, parts["home"]["found"], parts["home"]["state"]) == (0, str(home), "ok")
    assert parts["Ollama"]["state"] == "missing" and "ollama serve" in parts["Ollama"]["todo"]
    monkeypatch.setenv("BACKPROPAGATE_STORE", "/proc/nowhere")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    monkeypatch.setenv("LLAMA_CPP_DIR", str(home / "nowhere"))
    status, out, _ = said(["doctor", "--json"], capsys)
    wrong = {part["name"] for part in json.loads(out) if part["state"] == "wrong"}
    assert (status, wrong) == (2, {"home", "Prefect", "LLAMA_CPP_DIR"})


def test_doctor_asks_the_converter(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout of llama.cpp is ok if its converter starts; where none is named there is nothing to say."""
    assert list(converter(settings())) == []
    monkeypatch.setenv("LLAMA_CPP_DIR", str(stand_in_converter.install(tmp_path / "llama.cpp")))
    assert [part.state for part in converter(settings())] == ["ok"]
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text("import nothing.of.the.kind")
    [part] = converter(settings())
    assert part.state == "wrong" and "does not start" in part.found and part.todo


def test_an_empty_home(capsys: Capture) -> None:
    """Where nothing was done yet, the history is empty, the store is sound, and there is nothing to send."""
    assert said(["list-runs", "--json"], capsys)[:2] == (0, "[]\n")
    assert said(["store", "check", "--json"], capsys)[:2] == (0, '{"artifacts": 0, "findings": [], "repaired": null}\n')
    assert said(["sync"], capsys)[0] == 0


@contextmanager
def backprop(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """The command in a process group of its own, of which nothing is left in any case."""
    command = [sys.executable, "-m", "flows", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def group_is_empty(group: int) -> bool:
    """No process of this group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_reader_who_leaves(home: Path) -> None:
    """`backprop info --error-codes | head -1` ends without a traceback, as a command killed by SIGPIPE would."""
    with backprop("info", "--error-codes") as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == ("", 141)


@pytest.mark.usefixtures("prefect_home")
def test_a_run_from_the_command_line(base: Path, data: list[str]) -> None:
    """One JSON document on stdout, our own lines alone on stderr, nothing left behind, and the history knows it."""
    words = ["train", "--data", data[0], "--model", str(base), "--steps", "2", "--set", "training.lora.rank=4"]
    with backprop(*words, "--json") as process:
        out, err = process.communicate()
        assert group_is_empty(process.pid)
    result = RunResult.model_validate_json(out)
    assert (process.returncode, result.status, out.count("\n")) == (0, "finished", 1)
    chosen = [choice.field for choice in result.defaults]
    assert "training.learning_rate" in chosen and "training.lora.rank" not in chosen
    assert [line for line in err.splitlines() if not re.search(EXPECTED, line)] == []
    listed = subprocess.run([sys.executable, "-m", "flows", "list-runs"], capture_output=True, text=True)
    assert result.run_id[:12] in listed.stdout and "finished" in listed.stdout


@pytest.mark.usefixtures("prefect_home")
def test_terminated(home: Path, base: Path, data: list[str]) -> None:
    """SIGTERM does what Ctrl-C does: exit 130, how to go on, nothing left behind, in seconds."""
    words = ["train", "--data", data[0], "--model", str(base), "--steps", "100000", "--json"]
    words += ["--set", "training.device=cpu"]  # however slow it is
    with backprop(*words) as process:
        while not any(home.glob("store/runs/*/spec.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        time.sleep(1)  # it trains, or waits for the worker that will
        process.terminate()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and group_is_empty(process.pid)
    [run_id] = [path.parent.name for path in home.glob("store/runs/*/spec.json")]
    first, second = err.splitlines()[-2:]
    assert first.startswith("[RUNTIME_INTERRUPTED]") and second.endswith(f"backprop resume {run_id}")
    assert json.loads(out)["run_id"] == run_id and json.loads(out)["error"]["code"] == "RUNTIME_INTERRUPTED"
