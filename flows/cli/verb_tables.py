"""What verbs there are beside those of flows: module, line in `--help` and example. It imports nothing heavy."""

from typing import NamedTuple

from backprop_core.schema.flows import FLOWS

NO_FLOWS = {  # the other verbs: module, line in --help, example
    "demo": ("running", "Train, merge, score and export a small example; no GPU.", "backprop demo"),
    "resume": ("running", "Resume an interrupted run.", "backprop resume RUN_ID"),
    "replay": (
        "running",
        "Re-run an earlier run, optionally overriding fields.",
        "backprop replay RUN_ID --set training.lora.rank=16",
    ),
    "generate": (
        "running",
        "Generate answers to prompts with the adapter of a run.",
        'backprop generate support --prompt "Where is my order?"',
    ),
    "chat": (
        "talking",
        "Talk to the model of a run or line.",
        "backprop chat support",
    ),
    "compare": (
        "talking",
        "Ask two models the same and show their answers side by side.",
        'backprop compare support base --prompt "Where is my order?"',
    ),
    "list-runs": ("history", "List runs, newest first.", "backprop list-runs --sort average --limit 10"),
    "show-run": ("history", "Show a run: its outcome, forgetting matrix and files.", "backprop show-run RUN_ID"),
    "diff-runs": (
        "comparing",
        "Show two runs side by side: fields, data, scores, matrix.",
        "backprop diff-runs RUN_ID RUN_ID",
    ),
    "logs": ("history", "Print the log of a run.", "backprop logs RUN_ID"),
    "export-runs": (
        "exporting",
        "Write the history as JSON lines, CSV or Parquet.",
        "backprop export-runs --format csv --output runs.csv",
    ),
    "lines": ("history", "List lines with their champions, versions and tasks.", "backprop lines"),
    "show-line": (
        "history",
        "Show a line: each version with its scores and its verdict.",
        "backprop show-line support",
    ),
    "sync": ("history", "Send trackers what was recorded while they were down.", "backprop sync"),
    "serve": (
        "serving",
        "Serve Prefect, MLflow and all deployments until Ctrl-C.",
        "backprop serve --port 8800",
    ),
    "ui": ("serving", "Same as serve.", "backprop ui --port 8800"),
    "deploy": (
        "serving",
        "Create or update the deployments on a Prefect server.",
        "backprop deploy --dry-run",
    ),
    "watch": (
        "serving",
        "Retrain lines that have new data, until Ctrl-C.",
        "backprop watch",
    ),
    "init": ("maintenance", "Write a commented job file for a line: lines/LINE.yaml.", "backprop init support"),
    "estimate-vram": (
        "maintenance",
        "Estimate the GPU memory of a run; show which settings fit.",
        "backprop estimate-vram --model qwen2.5-7b --vram 16GB",
    ),
    "presets": ("maintenance", "List the models that --preset knows.", "backprop presets"),
    "doctor": ("maintenance", "Check this machine part by part and say how to fix problems.", "backprop doctor"),
    "upgrade": ("upgrading", "Bring the home to this version, after a backup.", "backprop upgrade --dry-run"),
    "info": ("maintenance", "Show versions, devices, settings, paths, or error codes.", "backprop info"),
    "completion": (
        "shell",
        "Print the completion script of bash, zsh or fish.",
        "backprop completion bash",
    ),
    "help": ("shell", "Show the help of a verb.", "backprop help train"),
}
STORE = {  # verbs of `backprop store`: line in --help, example
    "check": (
        "Verify every artifact and list what is damaged or missing; --repair makes room for what can be made again.",
        "backprop store check --repair",
    ),
    "prune": (
        "List what no version, recent result, pin or unfinished run needs, ask, then delete it.",
        "backprop store prune --dry-run",
    ),
    "copy": (
        "Copy a store into another one, a directory or an s3:// address: what that lacks, verified.",
        "backprop store copy ~/.backpropagate/store s3://team/store",
    ),
    "sync": ("Copy what either of two stores lacks to it.", "backprop store sync OLD_STORE s3://team/store"),
    "keep": ("Pin artifacts so that prune keeps them, or list the pins.", "backprop store keep RUN_ID"),
}
DATA = {  # verbs of `backprop data`: line in --help, example
    "report": (
        "Report what is in datasets: rows by outcome, lengths, duplicates, and rows as training sees them.",
        "backprop data report support.jsonl --output report.html --fail-on 'near_duplicates>5%'",
    ),
    "preview": (
        "Show rows as training sees them: the chat template applied, the label tokens in colour, what is cut.",
        "backprop data preview support.jsonl --rows 5",
    ),
    "put": ("Check rows and put them into the home's data directory.", "backprop data put night.jsonl --line support"),
    "split": (
        "Write the rows that a run would hold out, and the others, into two files.",
        "backprop data split support.jsonl --heldout heldout.jsonl --train train.jsonl",
    ),
    "trace": (
        "Find which datasets, files, runs, versions and releases contain a row.",
        "backprop data trace ann.smith@example.org",
    ),
    "restore": (
        "List the rows in quarantine, and put back those that you name.",
        "backprop data restore 3f9c12ab",
    ),
    "forget": (
        "Remove rows from everything in the home, block them, and list what has learned them.",
        "backprop data forget 3f9c12ab --plan",
    ),
}
LINE = {  # verbs of `backprop line`: line in --help, example
    "delete": (
        "Say what happens to everything of a line, ask for its name, then delete it.",
        "backprop line delete support --dry-run",
    ),
    "rename": (
        "Give a line another name, everywhere but at Ollama and the Hub.",
        "backprop line rename support helpdesk --dry-run",
    ),
    "export": (
        "Write a line into one file: versions, adapters, rows, held-out sets and the job file.",
        "backprop line export support --output support.line",
    ),
    "import": (
        "Read a line from such a file; a name that exists is refused.",
        "backprop line import support.line --to helpdesk",
    ),
}
USERS = {  # verbs of `backprop users`: line in --help, example
    "add": (
        "Add a user of the pages; the password comes from a prompt or from stdin.",
        "backprop users add ann --role act",
    ),
    "list": ("List the users of the pages, with their roles and tokens.", "backprop users list"),
    "remove": ("Remove a user; sessions and tokens end at once.", "backprop users remove ann"),
    "role": ("Let a user act, or only look.", "backprop users role ann look"),
    "password": ("Give a user a new password, from a prompt or from stdin.", "backprop users password ann"),
    "token": ("Make a token for a service; it is shown once.", "backprop users token nightly"),
    "revoke": ("End a token.", "backprop users revoke nightly 3f9c12ab"),
    "audit": ("Show who did what at the pages, newest first.", "backprop users audit --limit 20"),
}


class Group(NamedTuple):
    """Verbs of two words."""

    help: str
    module: str  # of flows.cli
    prefix: str  # of the functions' names
    verbs: dict[str, tuple[str, str]]


GROUPS = {
    "data": Group("Look into datasets before training on them.", "data", "", DATA),
    "store": Group("Check, prune, pin and copy artifacts.", "maintenance", "store_", STORE),
    "line": Group("Act on a line as a whole.", "line", "line_", LINE),
    "users": Group("Say who may sign in at the pages.", "users", "users_", USERS),
}

ELSEWHERE = {"line_export": "line_transfer", "line_import": "line_transfer"}  # functions in another module


def verbs() -> dict[str, tuple[str, str, str]]:
    """Module, help and example of every verb, in the order of --help."""
    names = list(NO_FLOWS)
    of_flows = {flow.verb.name: flow.verb for flow in FLOWS.values() if flow.verb}
    for verb in of_flows.values():
        names.insert(names.index(verb.after) + 1, verb.name)
    return {name: of_flows[name][1:4] if name in of_flows else NO_FLOWS[name] for name in names}
