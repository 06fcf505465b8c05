"""What a run has cost since it began or was resumed, and what the cache has saved it, as metrics."""

from backprop_core.schema.refs import RunResult
from backprop_core.stages import every


def costs(result: RunResult) -> dict[str, float]:
    """Seconds of its stages, those on the device apart, and the training that it took from the cache."""
    computed, known = [stage for stage in result.stages if not stage.cached], every()
    in_worker = [stage for stage in computed if stage.stage in known and known[stage.stage].runs_in == "worker"]
    device = "gpu" if result.spec["training"]["device"] == "cuda" else "cpu"
    return {
        "cost.seconds": sum(stage.seconds for stage in computed),
        f"cost.{device}_seconds": sum(stage.seconds for stage in in_worker),
        "cost.tokens": float(sum(run.tokens for run in result.runs if not run.cached)),
        "cache.stages": float(len(result.stages) - len(computed)),
        "cache.saved_seconds": sum(run.seconds for run in result.runs if run.cached),
        "cache.saved_tokens": float(sum(run.tokens for run in result.runs if run.cached)),
    }
