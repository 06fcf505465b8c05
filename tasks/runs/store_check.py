"""`backprop store check`: verifies all artifacts, and finds missing ones."""

from collections.abc import Iterator

from backprop_core.lines.versions import Lines
from backprop_core.publishing.release import released
from backprop_core.runtime.settings import Settings
from backprop_core.schema.refs import Located, RunResult, artifacts_in
from backprop_core.store.artifacts import Finding, Store
from tasks.stages.cache_policy import UnfitRecord, read_result


def check(config: Settings) -> tuple[int, list[Finding]]:
    """The number of artifacts, and all findings: damaged or missing artifacts."""
    store = Store(config.store_path)
    return store.count(), [*store.check(), *missing(store)]


def missing(store: Store) -> Iterator[Finding]:
    """Artifacts that are missing although versions, releases, results of runs or the cache use them.

    An artifact that prune removed has left a tombstone file, and does not count as missing.
    """
    named: dict[str, list[str]] = {}
    for who, digest in [*of_versions(store), *of_runs(store), *of_cache(store)]:
        named.setdefault(digest, []).append(who)
    for digest, names in sorted(named.items()):
        if not store.layout.artifact(digest).is_dir() and not store.was_removed(digest):
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
    for run in store.layout.ended():
        result = RunResult.model_validate_json(run.result.read_bytes())
        adapters = [adapter for one in result.runs for adapter in (one.tuned, one.merged)]
        made: list[Located] = [*adapters, *result.packages, *([result.merged] if result.merged else [])]
        for digest in [*(each.digest for each in made), *(file.digest for file in result.gguf)]:
            yield f"run {run.run_id[:12]}", digest


def of_cache(store: Store) -> Iterator[tuple[str, str]]:
    """Artifacts in the cached results of stages, with the stage's key."""
    for path in store.layout.cache_results.glob("*"):
        try:
            result = read_result(path.read_bytes())
        except UnfitRecord:
            continue  # the cache ignores it, too
        yield from ((f"the cached stage {path.name[:12]}", ref.digest) for ref in artifacts_in(result))
