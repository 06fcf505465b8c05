"""From a spec to a flow's result, for whoever sits at this machine. The worker starts while Prefect is imported."""

from backprop_core.refs import RunResult
from backprop_core.specs import RunSpec
from tasks import early


def run(flow: str, spec: RunSpec, *, fresh: bool = False) -> RunResult:
    """Check the inputs, start the worker if there is work for it, then call the flow."""
    early.start(flow, spec, fresh=fresh)
    if flow == "train":
        from flows.train import train

        return train(
            spec.datasets[0],
            model=spec.model,
            line=spec.line,
            training=spec.training,
            evaluation=spec.evaluation,
            export=spec.export,
            fresh=fresh,
        )
    from flows.multi_run import multi_run

    parts = {name: getattr(spec, name) for name in type(spec).model_fields}
    return multi_run(**parts, fresh=fresh)


def resume(prefix: str) -> RunResult:
    """Go on with an interrupted run, from its own record. Raises RunUnknown or RefAmbiguous."""
    run_id, prepared = early.restart(prefix)
    if prepared.flow == "train":
        from flows.train import train

        return train(prepared.spec.datasets[0], run_id=run_id)
    if prepared.flow == "export":
        from flows.export import export

        return export(run_id)
    from flows.multi_run import multi_run

    return multi_run(prepared.spec.datasets, run_id=run_id)
