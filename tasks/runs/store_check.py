"""`backprop store check`: verifies all artifacts, finds missing ones, and makes room for what can be made again."""

from collections.abc import Iterator

from pydantic import Field

from backprop_core.lines.versions import Lines
from backprop_core.publishing.release_transaction import released
from backprop_core.runtime.settings import Settings
from backprop_core.schema.records import Record
from backprop_core.schema.refs import Located, RunResult, artifacts_in
from backprop_core.store.artifacts import Finding, Store
from tasks.stages.cache_policy import UnfitRecord, read_result


def check(config: Settings) -> tuple[int, list[Finding]]:
    """The number of artifacts, and all findings: damaged or missing artifacts."""
    store = Store(config.store_path)
    return store.count(), [*store.check(), *missing(store)]


class Repaired(Record):
    """What a repair did, and the runs to replay so that the rest is made again."""

    set_aside: list[str] = Field(description="Digests of damaged artifacts, moved out of the way.")
    results: int = Field(description="Results of stages that the cache no longer has, as their artifacts are gone.")
    replay: list[str] = Field(description="Runs of this store that have made or used what is missing.")


class Checked(Record):
    """What a check found."""

    artifacts: int
    findings: list[Finding]
    repaired: Repaired | None = Field(None, description="Null without --repair.")


def repair(config: Settings) -> Checked:
    """Set damaged artifacts aside and drop cached results whose artifacts are gone; then check again.

    What is missing after that is made again by the same work: a stage whose result is gone runs again.
    """
    store = Store(config.store_path)
    aside = sorted({finding.digest for finding in store.check()})
    for digest in aside:
        store.set_aside(digest)
    results = drop_results(store)
    left = [*missing(store)]
    done = Repaired(set_aside=aside, results=results, replay=makers(store, {one.digest for one in left}))
    return Checked(artifacts=store.count(), findings=left, repaired=done)


def drop_results(store: Store) -> int:
    """Drop the cache's records of stages whose artifacts are not there; the stages run again when they are needed."""
    dropped = 0
    for path in [*store.layout.cache_results.glob("*")]:
        try:
            refs = [*artifacts_in(read_result(path.read_bytes()))]
        except UnfitRecord:
            refs = []
        if any(not store.has(ref.digest) for ref in refs):
            store.drop_result(path.name)
            dropped += 1
    return dropped


def makers(store: Store, digests: set[str]) -> list[str]:
    """The runs that have made or used these artifacts, and whose spec is here."""
    lines, found = Lines(store), set[str]()
    for line in lines.names():
        for version in (lines.version(line, number) for number in lines.versions(line)):
            found |= {version.run_id} if digests & {ref.digest for ref in artifacts_in(version)} else set()
    found |= {run_id for run_id, digest in made_by_runs(store) if digest in digests}
    return sorted(run_id for run_id in found if store.layout.run(run_id).spec.is_file())


def missing(store: Store) -> Iterator[Finding]:
    """Artifacts that are missing although versions, releases, results of runs or the cache use them.

    An artifact that prune removed has left a tombstone file, and does not count as missing.
    """
    named: dict[str, list[str]] = {}
    for who, digest in [*of_versions(store), *of_runs(store), *of_cache(store)]:
        named.setdefault(digest, []).append(who)
    for digest, names in sorted(named.items()):
        if not store.has(digest) and not store.was_removed(digest):
            what = f"missing, but used by {', '.join(dict.fromkeys(names))}"
            yield Finding(digest=digest, what=what, missing=True)


def of_versions(store: Store) -> Iterator[tuple[str, str]]:
    """Artifacts of versions and releases, with the version."""
    lines = Lines(store)
    for line in lines.names():
        for number in lines.versions(line):
            for record in (lines.version(line, number), released(line, number, store)):
                yield from ((f"{line}@{number}", ref.digest) for ref in artifacts_in(record))


def of_runs(store: Store) -> Iterator[tuple[str, str]]:
    """Artifacts in the results of runs, with the run."""
    return ((f"run {run_id[:12]}", digest) for run_id, digest in made_by_runs(store))


def made_by_runs(store: Store) -> Iterator[tuple[str, str]]:
    """Artifacts in the results of runs, with the run_id."""
    for run in store.layout.ended():
        result = RunResult.model_validate_json(run.result.read_bytes())
        adapters = [adapter for one in result.runs for adapter in (one.tuned, one.merged)]
        made: list[Located] = [*adapters, *result.packages, *([result.merged] if result.merged else [])]
        for digest in [*(each.digest for each in made), *(file.digest for file in result.gguf)]:
            yield run.run_id, digest


def of_cache(store: Store) -> Iterator[tuple[str, str]]:
    """Artifacts in the cached results of stages, with the stage's key."""
    for path in store.layout.cache_results.glob("*"):
        try:
            result = read_result(path.read_bytes())
        except UnfitRecord:
            continue  # the cache ignores it, too
        yield from ((f"the cached stage {path.name[:12]}", ref.digest) for ref in artifacts_in(result))
