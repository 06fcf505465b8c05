"""Whatever people write into settings, flags, names and files: it is done, or a coded error says what to correct.

Ten thousand cases; BACKPROP_FUZZ multiplies them, BACKPROP_FUZZ_SEED draws others.
"""

import contextlib
import io
import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError

from backprop_core.errors import BackpropError
from backprop_core.lines.versions import Lines
from backprop_core.runtime.settings import Settings, settings
from backprop_core.schema.flows import FLOWS
from backprop_core.schema.refs import RunId
from backprop_core.schema.specs import DatasetSpec, ExportSpec, PublishSpec, RunSpec
from backprop_core.store.artifacts import Store
from flows.cli import lines_file, main
from flows.cli.config_layers import evaluation_spec, export_spec, generation_spec, publish_spec, replayed, run_spec
from flows.cli.console import configure_logging, error_text
from flows.cli.spec_fields import ENTRY, spec_fields
from flows.cli.verb_tables import GROUPS, verbs
from tasks.runs import prepared_run, resolve, resolve_earlier, sources
from tasks.tracking import RunFilter, list_runs, sync
from tests.tasks.runs.test_manual_promotion import ANN

TIMES = int(os.environ.get("BACKPROP_FUZZ", "1"))
SEED = int(os.environ.get("BACKPROP_FUZZ_SEED", "14"))
NASTY = (
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "../x",
        "../../etc",
        "./",
        "A",
        "Support",
        "x" * 64,
        "x" * 300,
        "x" * 5000,
        "-",
        "--",
        "_",
    ),
    *(
        "~",
        "~nobody-is-called-so",
        "~nobody-is-called-so/x",
        "a b",
        "a\nb",
        "a\tb",
        "é",
        "名前",
        "🦙",
        "\u202e",
        "\udcff",
    ),
    *(
        "#",
        "?",
        "b?c",
        "faq #1.jsonl",
        "a%20b",
        "%zz",
        "a;b",
        "$HOME",
        "`x`",
        '"',
        "'",
        '"""',
        "\\",
        "\\\\host\\x",
        "CON",
    ),
    *(
        "0",
        "-1",
        "1",
        "00",
        "007",
        "1e999",
        "-1e999",
        "1e-999",
        "nan",
        "inf",
        "-inf",
        "9" * 400,
        "0x10",
        "1_000",
        "1.5",
    ),
    *(
        "true",
        "false",
        "maybe",
        "null",
        "None",
        "~",
        "yes",
        "[]",
        "{}",
        "[",
        "]",
        "{",
        "}",
        "[1, 2]",
        "{a: b}",
        "a: b",
        ":",
    ),
    *(
        "&a [*a]",
        "*a",
        "!!python/object:os.system x",
        "!x y",
        "- - - -",
        "? x",
        "|",
        ">",
        "%YAML 9.9",
        "---",
        "...",
        "@",
        ",",
    ),
    *(
        "[" * 40,
        "{a: " * 40,
        "2024-01-01",
        "12:30:45",
        "=",
        "==",
        "a=b",
        "<<",
        "loud",
        "debug",
        "DEBUG",
        "cpu",
        "cuda",
        "nf4",
    ),
    *(
        "http://",
        "http://[",
        "http://[::1",
        "http://127.0.0.1:9/x.jsonl",
        "http://127.0.0.1:9",
        "https://127.0.0.1:9/x",
    ),
    *(
        "http://127.0.0.1:99999/x",
        "http://u:p@127.0.0.1:9/x",
        "file:",
        "file:///",
        "file://host/x",
        "ftp://127.0.0.1:9/x",
    ),
    *("://", "x://y", "store:", "store:abc", f"store:{'0' * 64}", "memory://x", "zip://x::file://y", "data:,x", "a::b"),
    *(
        "data",
        "data.jsonl",
        "readable.jsonl",
        "line@1",
        "line@",
        "@1",
        "@",
        "line@0",
        "line@-1",
        "line@99999999999999999999",
    ),
    *(
        "0" * 32,
        "f" * 32,
        "ab",
        "support",
        "default",
        "finished",
        "q4_k_m",
        "q4_k_m,f16",
        ",",
        "all-linear",
        "q_proj,",
        "slao",
    ),
    *(
        "owner/name",
        "owner/",
        "/name",
        "a/b/c",
        "owner/name@main",
        "/dev/null",
        "/dev/null/x",
        "/proc/x/y",
        "/dev/full",
        "dir",
    ),
)
VARIABLES = [f"BACKPROPAGATE_{name.upper()}" for name in Settings.model_fields]
FIELDS = [path for path in spec_fields() if "." in path or path != "datasets"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_logging: None) -> Iterator[Path]:
    """A directory with a few files; loggers and signals are afterwards what they were."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("BACKPROPAGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # no server is started
    Path("data").touch()
    Path("dir").mkdir()
    Path("readable.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 30)
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, known in signals.items():
        signal.signal(number, known)


class Fuzz(random.Random):
    """Draws what somebody might write."""

    def text(self) -> str:
        """A nasty word, or one that was made of two."""
        first = self.choice(NASTY)
        match self.randrange(8):
            case 0:
                return first + self.choice(NASTY)
            case 1:
                return first[: self.randrange(len(first) + 1)]
            case 2:
                return "".join(self.choices("abz019._-/\\:@#?[]{}&*!'\"= \n\té", k=self.randrange(12)))
        return first

    def field(self) -> str:
        """A field of a spec, one of its lists with a number, misspelt now and then."""
        path = self.choice(FIELDS).replace(ENTRY, self.choice(["0", "0", "0", "1", "7", "x"]))
        return path[:-1] if self.randrange(20) == 0 else path

    def yaml(self) -> str:
        """A file of fields."""
        lines = []
        for _ in range(self.randrange(1, 6)):
            *sections, name = self.field().split(".")
            for depth, section in enumerate(sections):
                lines.append(f"{'  ' * depth}{section}:")
            lines.append(f"{'  ' * len(sections)}{name}: {self.text()}")
        return "\n".join(lines if self.randrange(3) else lines[::-1])


def outcome(work: Callable[[], object]) -> str:
    """`done`, or the code of the error, as the command line's outermost frame would tell it."""
    try:
        work()
    except BackpropError as error:
        coded = error
    except Exception as error:
        coded = main.as_coded(error)
        if coded.code == "RUNTIME_UNEXPECTED":
            raise
    else:
        return "done"
    assert coded.exit_status == 1 or coded.code == "DEP_HUB_UNREACHABLE", coded
    assert len(error_text(coded).splitlines()) == 2 and coded.message.strip() and coded.hint.strip()
    return coded.code


def tried(name: str, count: int, case: Callable[[Fuzz], Callable[[], object]]) -> None:
    """`count` cases; each says with which seed it comes again. Some are done, and some are refused."""
    found = set()
    for number in range(count * TIMES):
        seed = f"{name} {SEED} {number}"
        try:
            found.add(outcome(case(Fuzz(seed))))
        except Exception as error:
            error.add_note(f"Fuzz({seed!r})")
            raise
    assert len(found) > 1, found


def test_settings(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Every variable of ours, alone or with others, in the environment or in `.env`, and what is done with it first."""

    def case(fuzz: Fuzz) -> Callable[[], object]:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("BACKPROPAGATE_HOME", str(place / "home"))
        said = {fuzz.choice(VARIABLES): fuzz.text() for _ in range(fuzz.randrange(1, 3))}
        Path(".env").unlink(missing_ok=True)
        if fuzz.randrange(5) == 0:
            lines = "".join(f"{name}={value}\n" for name, value in said.items())
            Path(".env").write_bytes(lines.encode(errors="surrogateescape"))
        else:
            for name, value in said.items():
                monkeypatch.setenv(name, value)

        def work() -> None:
            config = settings()
            config.home_path, config.store_path, config.allowed_roots  # noqa: B018 - each may refuse
            configure_logging(config, verbose=False)
            lines_file.every(config)
            if fuzz.randrange(4) == 0:
                Lines(Store(config.store_path)).names()
                list_runs(config, RunFilter())

        return work

    tried("settings", 1500, case)


def test_specs() -> None:
    """Any value for any field, by --set, flag, environment and file."""

    def case(fuzz: Fuzz) -> Callable[[], object]:
        flags: dict[str, object] = {"datasets": [{"path": fuzz.text()}]}
        names = {"datasets": "--data"}
        for path in fuzz.sample(FIELDS, 2):
            if fuzz.randrange(4) == 0:
                flags[path], names[path] = fuzz.text(), f"--{path}"
        marks = [f"{fuzz.field()}={fuzz.text()}" for _ in range(fuzz.randrange(1, 4))]
        return lambda: run_spec(flags=flags, names=names, settings=marks)

    tried("specs", 3000, case)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any value for any field, by a variable."""

    def case(fuzz: Fuzz) -> Callable[[], object]:
        name = "BACKPROPAGATE_" + fuzz.field().upper().replace(".", "__")

        def work() -> None:
            with monkeypatch.context() as here:
                here.setenv(name, fuzz.text())
                run_spec(flags={"datasets": [{"path": "x"}]}, names={"datasets": "--data"})

        return work

    tried("environment", 1000, case)


def test_files(place: Path) -> None:
    """Any text as a file of fields, and as a line's file; some are no text at all."""

    def case(fuzz: Fuzz) -> Callable[[], object]:
        file = Path("lines") / "support.yaml"
        file.parent.mkdir(exist_ok=True)
        text = fuzz.yaml().encode(errors="surrogateescape")
        file.write_bytes(text if fuzz.randrange(10) else text + fuzz.randbytes(9))
        if fuzz.randrange(2):
            return lambda: lines_file.read(file)
        return lambda: run_spec(flags={"datasets": [{"path": "x"}]}, names={"datasets": "--data"}, file=file)

    tried("files", 2000, case)


def asked(*, model: str | None = None, **dataset: str) -> RunSpec:
    """The spec of a command with these words."""
    flags = {"datasets": [dataset], "model.name": model}
    return run_spec(flags=flags, names={"datasets": "--data", "model.name": "--model"})


def test_names(place: Path) -> None:
    """Any name of a run, a line, a version, a file or a base, at every door that finds things by name."""
    store = Store(place / "store")
    run: RunId = "ab" * 16
    store.layout.run(run).root.mkdir(parents=True)
    store.layout.run(run).spec.write_text("{}")
    doors: list[Callable[[str], object]] = [
        lambda name: resolve_earlier.made(name, store),
        lambda name: prepared_run.full_run_id(name, store),
        lambda name: resolve_earlier.to_release(
            "release", name, None, PublishSpec(ollama="x"), ExportSpec(), ANN, store
        ),
        lambda name: resolve_earlier.to_rollback(name, None, ANN, store),
        lambda name: resolve_earlier.promoted("feed", name, ANN, store),
        lambda name: resolve.prepare("train", asked(path="x", model=name), store),
        lambda name: sources.sources(asked(path=name).datasets, place),
        lambda name: sources.sources(asked(path="readable.jsonl", heldout=name).datasets, place),
        lambda name: lines_file.find(name, settings()),
        lambda name: lines_file.write(name, settings()),
    ]

    def case(fuzz: Fuzz) -> Callable[[], object]:
        door, name = fuzz.choice(doors), fuzz.text()
        return lambda: door(name)

    tried("names", 1500, case)
    store.close()
    assert not (place / "etc").exists() and not list(place.glob("*.yaml"))


def test_parts() -> None:
    """What export, push, evaluate, generate and replay are told."""
    spec = RunSpec(datasets=[DatasetSpec(path="x")])

    def case(fuzz: Fuzz) -> Callable[[], object]:
        word = fuzz.text()
        work: list[Callable[[], object]] = [
            lambda: export_spec({"quantizations": word.split(",")}, {"quantizations": "--quantization"}),
            lambda: export_spec({"ollama": word, "num_ctx": word}, {"ollama": "--ollama", "num_ctx": "--num-ctx"}),
            lambda: publish_spec({"repo": word, "keep": word}, {"repo": "--repo", "keep": "--keep"}),
            lambda: evaluation_spec(word, [f"evaluation.{word}={word}"]),
            lambda: generation_spec({"temperature": word, "max_new_tokens": word}),
            lambda: replayed(spec, "ab" * 16, [f"{fuzz.field()}={word}"]),
        ]
        return fuzz.choice(work)

    tried("parts", 700, case)


WORDS: tuple[tuple[str, ...], ...] = (
    ("train", "--plan", "--model", "?", "--data", "?"),
    ("train", "--plan", "--model", "dir", "--data", "readable.jsonl", "--set", "?"),
    ("train", "--plan", "--data", "x", "--steps", "?", "--seed", "?", "--line", "?"),
    ("multi-run", "--plan", "--data", "?", "--runs", "?", "--samples", "?"),
    ("multi-run", "--plan", "--data", "x", "--data", "?", "--config", "?"),
    ("retrain", "--plan", "--line", "?", "--data", "?"),
    ("retrain", "--plan", "--line", "?"),
    ("train", "--plan", "--data", "x", "--preset", "?"),
    ("estimate-vram", "--model", "?", "--vram", "?"),
    ("info", "?"),
    ("lines", "--?"),
    ("list-runs", "--limit", "?"),
    ("show-run", "?"),
    ("replay", "?", "--set", "?"),
    ("init", "?"),
    ("store", "check", "?"),
    ("store", "?"),
    ("store", "prune", "--keep", "?", "--dry-run"),
    ("?",),
    ("?", "?"),
    ("train", "?", "?"),
    ("promote", "feed", "--line", "?X"),
    ("release", "?/", "--ollama", "x"),
    ("rollback", "../?"),
    ("rollback", "x", "--to", "?z"),
    ("push", "feed", "--repo", "?//?"),
    ("serve", "--port", "?z"),
    ("sync", "--json"),
)


def test_commands(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole commands with any words: exit 0 or 1, two lines of an error at most on stderr, and no traceback."""
    for number in range(300 * TIMES):
        fuzz = Fuzz(f"commands {SEED} {number}")
        words = [word.replace("?", fuzz.text()) for word in fuzz.choice(WORDS)]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main.main(words)
        said = err.getvalue()
        assert "RUNTIME_UNEXPECTED" not in said and "Traceback" not in said, (words, said)
        assert status in (0, 1), (words, status, said)
        assert status == 0 or said.strip().splitlines()[-2].startswith("["), (words, said)


MANY = 10_000 if "BACKPROP_FAULTS" in os.environ else 300
PLANNED = ("train", "multi-run", "retrain", "sweep", "bench", "rebase")  # with --plan, up to the door of the flow
FLOW_VERBS = {flow.verb.name for flow in FLOWS.values() if flow.verb} - set(PLANNED)
NOT_RUN = {"demo", "serve", "ui", "resume", "replay", *FLOW_VERBS}  # they start Prefect: their words are only parsed


def every_verb() -> dict[str, list[str]]:
    """The names of all flags of each verb."""
    names = [*verbs(), *(f"{name} {verb}" for name, group in GROUPS.items() for verb in group.verbs)]
    app = main.build()
    return {name: flags_of(reduce(App.__getitem__, name.split(), app)) for name in names}


def flags_of(verb: App) -> list[str]:
    return [name for argument in verb.assemble_argument_collection() for name in argument.names if name[0] == "-"]


def command_line(fuzz: Fuzz, known: dict[str, list[str]]) -> list[str]:
    """A verb, misspelt now and then, with any of its flags and any words."""
    verb = fuzz.choice(list(known))
    words = [*verb.split(), *(["--plan"] if verb in PLANNED else [])]
    for _ in range(fuzz.randrange(5)):
        flag = fuzz.choice(known[verb] or ["--json"])
        match fuzz.randrange(6):
            case 0 | 1:
                words.append(fuzz.text())
            case 2:
                words.append(flag)
            case 3:
                words.append(flag[:-1])
            case _:
                words += [flag, fuzz.text()]
    return words


def test_every_verb_takes_any_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever follows a verb: it is done, or a coded error says what to correct; never a traceback or a bug."""
    known, found = every_verb(), set[int]()
    for number in range(MANY * TIMES):
        fuzz = Fuzz(f"verbs {SEED} {number}")
        words = command_line(fuzz, known)
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(fuzz.text().encode(errors="replace"))))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = parsed(words) if words[0] in NOT_RUN else main.main(words)
        said = err.getvalue()
        assert "RUNTIME_UNEXPECTED" not in said, (words, said)
        assert status in (0, 1, 2, 3), (words, status, said)
        assert status in (0, 3) or words[0] == "doctor" or "[" in said, (words, said)
        found.add(status)
    assert {0, 1} <= found


def parsed(words: list[str]) -> int:
    """The exit status of a command whose words are only parsed."""
    try:
        main.build().parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return main.failed(error, as_json=False, verbose=False)
    return 0


def test_a_home_that_cannot_be_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, something below a file, a device: the place is named, and what to do; whatever the command."""
    for home in ("data", "data/below", "/dev/null", "/dev/null/x", "/proc/nothing", "~nobody-is-called-so/x"):
        monkeypatch.setenv("BACKPROPAGATE_HOME", home)
        for words in (
            ["lines"],
            ["list-runs"],
            ["store", "check"],
            ["show-run", "ab"],
            ["resume", "ab"],
            ["init", "x"],
        ):
            err = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
                status = main.main(words)
            assert "RUNTIME_UNEXPECTED" not in err.getvalue() and status in (0, 1), (home, words, err.getvalue())
    assert sync(Settings(home=Path("data"))).error
