"""Every path of a home and of a store. Nothing else spells one; what is inside an artifact, a checkpoint or a temporary
directory belongs to the room that writes it.

The home, BACKPROPAGATE_HOME:

store/                  the store, unless BACKPROPAGATE_STORE names another place
data/                   what deployed runs may read, unless BACKPROPAGATE_ALLOWED_PATHS names other places
  <line>.jsonl            where a new line's job looks for its data
  <name>/                 files that `data put` has put there
lines/<line>.yaml       the job of a line; line.schema.json describes such a file to editors
journal/                what MLflow gets
  <run_id>.jsonl          the lines of a run and its child runs
  <run_id>.lock           held by the process that writes them
  <run_id>.sent           how much of it MLflow has
  sent/                   journals that MLflow has to the end, with their .sent
  sync.lock               held by the process that sends
  registry.json           the lines as MLflow was last known to have them
  trackers/<tracker>/     what another tracker (BACKPROPAGATE_REPORT_TO) gets of the same journals
    <run_id>.json           how much of it this tracker has
    <run_id>.lock           held by the process that sends it
    sent/                   the notes of journals that this tracker has to the end
mlflow.db, mlruns/      MLflow's database and artifacts; mlflow.lock: held while its tables are made; mlflow.begun: they
                        are not complete
shared-stores/<name>/   local copies of stores in buckets
tensorboard/<line>/     event files of TensorBoard, a folder for each run
wandb/                  what the client of W&B keeps until it is sent; of offline runs, until a person sends it
format.json             the number of its format
backups/<time>/         what `upgrade` has changed, as it was: home/ and store/, to be copied back
serve.json              where a running `serve` is; serve.new: the same, being written; serve-before.json: the last one
serve.lock              held by `serve`
serve-id                how the names of this home's workers begin
users.json              who may sign in at the pages: roles, hashed passwords and tokens; users.lock: being changed
audit.jsonl             every action at the pages; audit.jsonl.<n>: older ones; audit.lock: one is being written
refused.jsonl           requests that were refused to strangers, the same way
prefect-ui/             Prefect's pages
<server>.log            of a server that was started here

The store:

format.json             the number of its format
artifacts/<digest>/     payload files and `artifact.json`, whose sha256 is the digest; read-only
records/<digest>.json   where it came from: outside the digest
tombstones/<digest>.json  removed on purpose
pins/<name>.txt         digests that a person keeps, one a line; the name is a run_id or `line@version`
damaged/<digest>-<n>/   set aside by verification
cache/                  Prefect's records of finished stages
  keys/<key>              one record a key
  results/<key>           what the record points to
notes/<kind>/<key>.json what was found out once; key-<stage>/: the parts of its keys, which --explain compares
checkpoints/<key>/      of interrupted trainings, under their stage's key
runs/<run_id>/          of one run
  spec.json               the complete resolved spec
  result.json             what it made
  decision.json           what the gate decided
  fresh.txt               what a run with `fresh` has done: `begun KEY` or `done KEY` a line
  log.jsonl               what it has logged, a line of JSON each
  sources/<sha256>        what it has downloaded, from its begin to its end
forgotten.jsonl         identities of rows that are not read any more
restored.txt            identities of quarantined rows that a person has put back, one a line
finished/<digest>       of runs whose stages are all in the cache
hashes/<digest>.json    sha256 of large files outside, with their state
rejected/<key>.json     when a retrain was rejected, by which run, and why
flow-runs/<id>          the run_id that a flow run of a deployment has begun, until that is finished and pruned
questions/<run_id>      Prefect's id of the flow run that asks a person about what the run made; in older stores <line>
lines/<line>/           of one line
  versions/<number>.json  append-only
  champion                the number of the live version
  first-name              the name under which it was made, if it was renamed
  moves/<run_id>.json     who made a version the champion by hand, and why
  votes/<run_id>/<id>.json  what a person thinks of an answer of what the run made; append-only
  releases/<number>.json  what went live with a version
  transaction.json        a release that has begun and has not ended
deleted-lines/<line>-<time>/  of a line that was deleted
  line.json               its tombstone: when, by whom, which versions
  records/                what lines/<line>/ was
line-exports/<key>.json  a file that a line was written into, and which artifacts are in it
renamed-lines/<line>-<time>/  of a line that was renamed
  line.json               both names, when, by whom, whether all is done
  mirrored                MLflow has the new name
moving/<id>.json        in a bucket: records of a line that move to another place, until all have moved
leases/<run_id>.txt     what a run uses, one digest or key a line, until it is finished; .lock: held by its process
ollama-servers/<server>/<name>.json  what was made on an Ollama server under a name
locks/<name>.lock       freed by the kernel when their holder dies
tmp/<session>/          what a process is writing; swept once its `lock` is free
shared.json             in the local copy of a store in a bucket: how leases name this copy
shared.db               what of the bucket this copy has, by etag

A store in a bucket has the same names, in these places below its prefix:

artifacts/ records/ cache/ checkpoints/ damaged/  as above; the manifest of an artifact is written last
state/<path>            every other file that machines share (`SHARED`); of those that are changed on a condition, one
                        without content was removed
locks/<name>            who holds a lock, and its token, which grows: see `store.remote_leases`

All locks, in the one order in which they are taken. A process that waits for one holds none that comes after it:

1. a slot of the deployment     Prefect's, before the run has a process
2. locks/line-<name>            of a run that continues the line, and of its release; of a delete and a rename, which
                                takes both names': not waited for, RunActive; of a copy, which leaves out a line at work
3. the journal of the run       in the home; not waited for: RunActive
4. locks/prune                  of a prune and of `data forget` to its end; of a run while it takes its lease
5. leases/<run_id>              not waited for: RunActive
6. the device                   locks/cpu, or of the machine for each GPU, by name; the worker's, to its end; who
                                waits for it holds a lock beside it: a run `.wanted`, a session of questions `.asked`
7. locks/<key>                  of a training and its checkpoints

A worker that starts before a stage needs it has the device out of turn, so its run gives it up before it waits for
anything (`tasks.runs.worker_process.give_up`). While one of the others is held, no lock is waited for: serve.lock,
users.lock and audit.lock of the home, sync.lock of the journals, the lock of a session in tmp/, and those beside
Prefect's and MLflow's databases.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

REBUILD = re.compile(r"\.rebuild-[0-9a-f]{12}$")  # end of the name of a line in which versions are trained again
MANIFEST = "artifact.json"  # in every artifact: kind, format, and the name, size and sha256 of each payload file

LINE_RECORD = re.compile(  # a file in the directory of a line, but for a release that is going on
    r"(?:(?:versions|releases)/[0-9]{6}|moves/[0-9a-f]{32}|votes/[0-9a-f]{32}/[\w-]+)\.json|champion|first-name",
    re.ASCII,
)

SHARED_STORES = "shared-stores"
SHARED = (  # of a store in a bucket, what all machines see; all else stays on one machine, or moves with an artifact
    *("tombstones", "pins", "runs", "finished", "rejected", "flow-runs", "questions", "leases", "ollama-servers"),
    *("lines", "deleted-lines", "renamed-lines", "moving", "line-exports", "forgotten.jsonl", "restored.txt"),
)


@dataclass(frozen=True)
class RunLayout:
    """The directory of one run in a store."""

    root: Path

    @property
    def run_id(self) -> str:
        """Which run it is."""
        return self.root.name

    @property
    def spec(self) -> Path:
        """The complete resolved spec."""
        return self.root / "spec.json"

    @property
    def result(self) -> Path:
        """What the run made."""
        return self.root / "result.json"

    @property
    def decision(self) -> Path:
        """What the gate decided."""
        return self.root / "decision.json"

    @property
    def fresh(self) -> Path:
        """What a run with `fresh` has done."""
        return self.root / "fresh.txt"

    @property
    def log(self) -> Path:
        """What the run has logged."""
        return self.root / "log.jsonl"

    @property
    def sources(self) -> Path:
        """Where the run holds what it has downloaded, each file by its digest."""
        return self.root / "sources"


@dataclass(frozen=True)
class LineLayout:
    """The directory of one line in a store."""

    root: Path

    @property
    def versions(self) -> Path:
        """The folder of its versions."""
        return self.root / "versions"

    def version(self, number: int) -> Path:
        """One version."""
        return self.versions / f"{number:06d}.json"

    @property
    def first_name(self) -> Path:
        """The name under which the line was made, if it has another one now."""
        return self.root / "first-name"

    @property
    def champion(self) -> Path:
        """The number of the live version."""
        return self.root / "champion"

    @property
    def moves(self) -> Path:
        """The folder of what people made the champion."""
        return self.root / "moves"

    def move(self, run_id: str) -> Path:
        """One of them."""
        return self.moves / f"{run_id}.json"

    @property
    def votes(self) -> Path:
        """The folder of all votes."""
        return self.root / "votes"

    def votes_on(self, run_id: str) -> Path:
        """The folder of the votes on what a run made."""
        return self.votes / run_id

    def vote(self, run_id: str, id: str) -> Path:
        """One vote."""
        return self.votes_on(run_id) / f"{id}.json"

    @property
    def releases(self) -> Path:
        """The folder of what went live."""
        return self.root / "releases"

    def release(self, number: int) -> Path:
        """What went live with a version."""
        return self.releases / f"{number:06d}.json"

    @property
    def transaction(self) -> Path:
        """A release that has begun and has not ended."""
        return self.root / "transaction.json"


@dataclass(frozen=True)
class DeletedLayout:
    """The directory of a line that was deleted."""

    root: Path

    @property
    def tombstone(self) -> Path:
        """When it was deleted, by whom, and which versions it had."""
        return self.root / "line.json"

    @property
    def records(self) -> Path:
        """What the directory of the line was."""
        return self.root / "records"

    @property
    def retired(self) -> Path:
        """There, if MLflow's registered model and curve of the line have another name."""
        return self.root / "retired"


@dataclass(frozen=True)
class RenamedLayout:
    """The directory of the renaming of a line."""

    root: Path

    @property
    def note(self) -> Path:
        """The names, when and by whom."""
        return self.root / "line.json"

    @property
    def mirrored(self) -> Path:
        """There, if MLflow has the new name."""
        return self.root / "mirrored"


@dataclass(frozen=True)
class StoreLayout:
    """A store."""

    root: Path

    @property
    def format(self) -> Path:
        """The number of its format."""
        return self.root / "format.json"

    @property
    def artifacts(self) -> Path:
        """The folder of all artifacts."""
        return self.root / "artifacts"

    def artifact(self, digest: str) -> Path:
        """The directory of one artifact."""
        return self.artifacts / digest

    def manifests(self) -> Iterator[Path]:
        """The manifests of all artifacts, in no order."""
        return self.artifacts.glob(f"*/{MANIFEST}")

    def record(self, digest: str) -> Path:
        """Where an artifact came from."""
        return self.root / "records" / f"{digest}.json"

    def tombstone(self, digest: str) -> Path:
        """Why and when an artifact was removed."""
        return self.root / "tombstones" / f"{digest}.json"

    @property
    def pins(self) -> Path:
        """The folder of all pins."""
        return self.root / "pins"

    def pin(self, name: str) -> Path:
        """The digests that a person keeps under this name."""
        return self.pins / f"{name}.txt"

    @property
    def damaged(self) -> Path:
        """Where verification sets artifacts aside."""
        return self.root / "damaged"

    @property
    def cache(self) -> Path:
        """The folder of Prefect's records of finished stages."""
        return self.root / "cache"

    @property
    def cache_keys(self) -> Path:
        """The folder of the records, by key."""
        return self.cache / "keys"

    def cache_key(self, key: str) -> Path:
        """One record."""
        return self.cache_keys / key

    @property
    def cache_results(self) -> Path:
        """The folder of what the records point to."""
        return self.cache / "results"

    def cache_result(self, key: str) -> Path:
        """What a stage returned."""
        return self.cache_results / key

    def note(self, kind: str, key: str) -> Path:
        """What was found out about what this key stands for."""
        return self.root / "notes" / kind / f"{key}.json"

    @property
    def trainings(self) -> Path:
        """The folder of all checkpoints."""
        return self.root / "checkpoints"

    def checkpoints(self, key: str) -> Path:
        """The checkpoints of the stage with this key."""
        return self.trainings / key

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.root / "runs"

    def run(self, run_id: str) -> RunLayout:
        """One run."""
        return RunLayout(self.runs / run_id)

    def begun(self, prefix: str = "") -> Iterator[RunLayout]:
        """The runs that have a spec and whose run_id begins with `prefix`, in no order."""
        return (RunLayout(spec.parent) for spec in self.runs.glob(f"{prefix}*/spec.json"))

    def logged(self, prefix: str) -> Iterator[RunLayout]:
        """The runs that have a log and whose run_id begins with `prefix`, in no order."""
        return (RunLayout(log.parent) for log in self.runs.glob(f"{prefix}*/log.jsonl"))

    def ended(self) -> Iterator[RunLayout]:
        """The runs that have a result, in no order."""
        return (RunLayout(result.parent) for result in self.runs.glob("*/result.json"))

    def holding(self) -> Iterator[RunLayout]:
        """The runs that hold what they have downloaded, in no order."""
        return (RunLayout(sources.parent) for sources in self.runs.glob("*/sources"))

    @property
    def forgotten(self) -> Path:
        """Identities of rows that are not read any more."""
        return self.root / "forgotten.jsonl"

    @property
    def restored(self) -> Path:
        """Identities of quarantined rows that a person has put back."""
        return self.root / "restored.txt"

    def finished(self, digest: str) -> Path:
        """There, if the stages of what has this digest are all in the cache."""
        return self.root / "finished" / digest

    def hashed(self, digest: str) -> Path:
        """The sha256 and the state of a large file outside, by the digest of its path."""
        return self.root / "hashes" / f"{digest}.json"

    def rejection(self, key: str) -> Path:
        """When a retrain was rejected, by which run, and why."""
        return self.root / "rejected" / f"{key}.json"

    @property
    def flow_runs(self) -> Path:
        """The folder of what flow runs of deployments have begun."""
        return self.root / "flow-runs"

    def flow_run(self, id: str) -> Path:
        """The run_id that a flow run of Prefect's has begun."""
        return self.flow_runs / id

    @property
    def questions(self) -> Path:
        """The folder of the questions that wait for a person."""
        return self.root / "questions"

    def question(self, run_id: str) -> Path:
        """Prefect's id of the flow run that asks about this run."""
        return self.questions / run_id

    @property
    def lines(self) -> Path:
        """The folder of all lines."""
        return self.root / "lines"

    def line(self, name: str) -> LineLayout:
        """One line."""
        return LineLayout(self.lines / name)

    def first_names(self) -> Iterator[Path]:
        """The files that say the first names of renamed lines, in no order."""
        return self.lines.glob("*/first-name")

    def with_versions(self) -> Iterator[LineLayout]:
        """The lines that have a version, each as often as it has versions, in no order."""
        return (LineLayout(path.parent.parent) for path in self.lines.glob("*/versions/*.json"))

    def deleted(self, line: str, time: str) -> DeletedLayout:
        """A line that was deleted at this time."""
        return DeletedLayout(self.root / "deleted-lines" / f"{line}-{time}")

    def deletions(self) -> Iterator[DeletedLayout]:
        """The lines that were deleted, in no order. One whose records are not there yet was not: it was cut off."""
        return (DeletedLayout(path.parent) for path in self.root.glob("deleted-lines/*/records"))

    def renamed(self, line: str, time: str) -> RenamedLayout:
        """A line that was renamed at this time."""
        return RenamedLayout(self.root / "renamed-lines" / f"{line}-{time}")

    def renamings(self) -> Iterator[RenamedLayout]:
        """The renamings of lines, in no order."""
        return (RenamedLayout(path.parent) for path in self.root.glob("renamed-lines/*/line.json"))

    def moving(self, id: str) -> Path:
        """The note of records that move to another place."""
        return self.root / "moving" / f"{id}.json"

    def all_moving(self) -> Iterator[Path]:
        """All of these notes, in no order."""
        return self.root.glob("moving/*.json")

    @property
    def line_exports(self) -> Path:
        """The folder of what is known of the files that lines were written into."""
        return self.root / "line-exports"

    def line_export(self, key: str) -> Path:
        """One such file, by a hash of its machine and path."""
        return self.line_exports / f"{key}.json"

    @property
    def leases(self) -> Path:
        """The folder of all leases and their locks."""
        return self.root / "leases"

    def damaged_copies(self, digest: str) -> Iterator[Path]:
        """What verification has set aside of an artifact."""
        return self.damaged.glob(f"{digest}-*")

    def lease(self, run_id: str) -> Path:
        """What a run uses."""
        return self.leases / f"{run_id}.txt"

    def lease_lock(self, run_id: str) -> Path:
        """Held by the process of a run."""
        return self.leases / f"{run_id}.lock"

    def ollama_claim(self, server: str, name: str) -> Path:
        """What was made under this name on an Ollama server; `server` is short for its address."""
        return self.root / "ollama-servers" / server / f"{name}.json"

    def lock(self, name: str) -> Path:
        """A lock of this store."""
        return self.root / "locks" / f"{name}.lock"

    @property
    def is_copy(self) -> bool:
        """Whether this is the place of a local copy of a store in a bucket."""
        return self.root.parent.name == SHARED_STORES

    @property
    def shared_note(self) -> Path:
        """How leases name this local copy of a store in a bucket."""
        return self.root / "shared.json"

    @property
    def shared_index(self) -> Path:
        """What of the bucket this copy has."""
        return self.root / "shared.db"

    def shared(self) -> Iterator[Path]:
        """The files that all machines share, but for locks and downloads, in no order."""
        for name in SHARED:
            place = self.root / name
            for path in place.rglob("*") if place.is_dir() else [place]:
                if self.is_shared(path) and path.is_file():
                    yield path

    def is_shared(self, path: Path) -> bool:
        """Whether all machines share this file."""
        first, *more = path.relative_to(self.root).parts
        hidden = path.name.startswith(".") or path.suffix == ".lock"
        return first in SHARED and not hidden and not (first == "runs" and "sources" in more)

    def is_log(self, path: Path) -> bool:
        """Whether this file is the log of a run, which grows all the time."""
        return path == self.run(path.parent.name).log

    def run_of(self, path: Path) -> str | None:
        """The run whose process alone writes this file; None: any may."""
        first, *more = path.relative_to(self.root).parts
        return Path(more[0]).stem if first in ("runs", "leases", "questions") and more else None

    @property
    def sessions(self) -> Path:
        """The folder of all temporary directories."""
        return self.root / "tmp"

    def session(self, name: str) -> Path:
        """The temporary directory of one process."""
        return self.sessions / name

    def session_lock(self, name: str) -> Path:
        """Held by that process."""
        return self.session(name) / "lock"


@dataclass(frozen=True)
class BucketLayout:
    """The keys of a store in a bucket, below its prefix."""

    STATE: ClassVar[str] = "state"
    ARTIFACTS: ClassVar[str] = "artifacts"
    LOCKS: ClassVar[str] = "locks"
    CACHE_KEYS: ClassVar[str] = "cache/keys"
    CHECKPOINTS: ClassVar[str] = "checkpoints"
    DAMAGED: ClassVar[str] = "damaged"

    def state(self, path: str) -> str:
        """A file that all machines share; `path` is relative to the store."""
        return f"{self.STATE}/{path}"

    def artifact(self, digest: str) -> str:
        """The prefix of an artifact's files."""
        return f"{self.ARTIFACTS}/{digest}"

    def payload(self, digest: str, name: str) -> str:
        """A file of an artifact."""
        return f"{self.ARTIFACTS}/{digest}/{name}"

    def record(self, digest: str) -> str:
        """Where an artifact came from."""
        return f"records/{digest}.json"

    def cache_key(self, key: str) -> str:
        """Prefect's record of a finished stage."""
        return f"{self.CACHE_KEYS}/{key}"

    def cache_result(self, key: str) -> str:
        """What a stage returned."""
        return f"cache/results/{key}"

    def checkpoints(self, key: str) -> str:
        """The prefix of a training's checkpoints."""
        return f"{self.CHECKPOINTS}/{key}"

    def damaged(self, name: str) -> str:
        """The prefix of an artifact's files that were found damaged."""
        return f"{self.DAMAGED}/{name}"

    def clock(self, copy: str) -> str:
        """What a machine writes to see the time of the server."""
        return f"clocks/{copy}"

    def lock(self, name: str) -> str:
        """Who holds a lock."""
        return f"{self.LOCKS}/{name}"


@dataclass(frozen=True)
class JournalLayout:
    """A directory of journals."""

    root: Path

    def lines(self, run_id: str) -> Path:
        """What is to be recorded of a run and its child runs."""
        return self.root / f"{run_id}.jsonl"

    def lock(self, run_id: str) -> Path:
        """Held by the process that writes the journal."""
        return self.root / f"{run_id}.lock"

    def sent_note(self, run_id: str) -> Path:
        """How much of the journal MLflow has."""
        return self.root / f"{run_id}.sent"

    @property
    def sent(self) -> "JournalLayout":
        """The journals that MLflow has to the end."""
        return JournalLayout(self.root / "sent")

    @property
    def sync_lock(self) -> Path:
        """Held by the process that sends."""
        return self.root / "sync.lock"

    @property
    def registry(self) -> Path:
        """The lines as MLflow was last known to have them."""
        return self.root / "registry.json"

    def tracker(self, name: str) -> "TrackerLayout":
        """What a tracker beside MLflow has of the journals."""
        return TrackerLayout(self.root / "trackers" / name)


@dataclass(frozen=True)
class TrackerLayout:
    """How much of each journal a tracker beside MLflow has."""

    root: Path

    def note(self, run_id: str) -> Path:
        """How much of a journal it has."""
        return self.root / f"{run_id}.json"

    def lock(self, run_id: str) -> Path:
        """Held by the process that sends this journal."""
        return self.root / f"{run_id}.lock"

    @property
    def sent(self) -> "TrackerLayout":
        """The notes of journals that it has to the end."""
        return TrackerLayout(self.root / "sent")

    def waiting(self) -> list[str]:
        """The runs of which something is still to be sent."""
        return [path.stem for path in sorted(self.root.glob("*.json"))]


@dataclass(frozen=True)
class HomeLayout:
    """BACKPROPAGATE_HOME."""

    root: Path

    @property
    def store(self) -> Path:
        """The store, unless another place is set."""
        return self.root / "store"

    def shared_store(self, address: str, endpoint: str) -> Path:
        """The local copy of the store at an address in a bucket of this S3 server; empty: Amazon's."""
        name = re.sub(r"[^a-z0-9._-]+", "-", address.partition("://")[2].lower()).strip("-")
        return self.root / SHARED_STORES / f"{name}-{hashlib.sha256((address + endpoint).encode()).hexdigest()[:8]}"

    @property
    def data(self) -> Path:
        """What deployed runs may read, unless other places are set."""
        return self.root / "data"

    def dataset(self, line: str) -> Path:
        """Where a new line's job looks for its data."""
        return self.data / f"{line}.jsonl"

    def received(self, name: str) -> Path:
        """Where `data put` puts files of rows."""
        return self.data / name

    @property
    def jobs(self) -> Path:
        """The folder of the jobs of all lines."""
        return self.root / "lines"

    @property
    def journal(self) -> JournalLayout:
        """What MLflow gets."""
        return JournalLayout(self.root / "journal")

    @property
    def mlflow_database(self) -> Path:
        """MLflow's database."""
        return self.root / "mlflow.db"

    @property
    def mlflow_leftovers(self) -> list[Path]:
        """What SQLite writes beside that database, and removes when all connections are closed."""
        return [self.root / f"mlflow.db-{kind}" for kind in ("journal", "wal", "shm")]

    @property
    def mlflow_lock(self) -> Path:
        """Held while the tables of that database are made."""
        return self.root / "mlflow.lock"

    @property
    def mlflow_begun(self) -> Path:
        """There, while those tables are not complete."""
        return self.root / "mlflow.begun"

    @property
    def mlflow_artifacts(self) -> Path:
        """MLflow's artifacts, a folder for each experiment."""
        return self.root / "mlruns"

    @property
    def format(self) -> Path:
        """The number of its format."""
        return self.root / "format.json"

    @property
    def backups(self) -> Path:
        """What upgrades have changed, as it was."""
        return self.root / "backups"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.root / "tensorboard"

    @property
    def wandb(self) -> Path:
        """What the client of W&B keeps."""
        return self.root / "wandb"

    @property
    def serve(self) -> Path:
        """Where a running `serve` is."""
        return self.root / "serve.json"

    @property
    def serve_new(self) -> Path:
        """The same while it is being written."""
        return self.root / "serve.new"

    @property
    def serve_before(self) -> Path:
        """Where the last `serve` was."""
        return self.root / "serve-before.json"

    @property
    def serve_lock(self) -> Path:
        """Held by `serve`."""
        return self.root / "serve.lock"

    @property
    def serve_id(self) -> Path:
        """How the names of this home's workers begin."""
        return self.root / "serve-id"

    @property
    def users(self) -> Path:
        """Who may sign in at the pages."""
        return self.root / "users.json"

    @property
    def users_lock(self) -> Path:
        """Held while that is being changed."""
        return self.root / "users.lock"

    @property
    def audit(self) -> Path:
        """Every action at the pages."""
        return self.root / "audit.jsonl"

    @property
    def refused(self) -> Path:
        """What was refused to strangers there."""
        return self.root / "refused.jsonl"

    @property
    def audit_lock(self) -> Path:
        """Held while one of the two is being written."""
        return self.root / "audit.lock"

    @property
    def prefect_ui(self) -> Path:
        """Prefect's pages."""
        return self.root / "prefect-ui"

    def log(self, server: str) -> Path:
        """What a server says that was started here."""
        return self.root / f"{server}.log"
