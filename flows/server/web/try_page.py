"""The page "Try it" of a line: ask its models, compare, vote, correct."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows.server.web import rows, state
from flows.server.web.frame import page, sources_of
from tasks.runs.answer_votes import votes_on


def show(request: Request) -> Response:
    """The models of a line, and the votes on them."""
    sources = sources_of(request)
    known = state.line(request.path_params["name"], sources)
    versions = known.store.versions if known.store else []
    waiting = [question.run_id for question in known.prefect.waiting] if known.prefect else []
    names = {**dict.fromkeys(waiting, "Candidate"), **{each.run_id: f"v{each.number}" for each in versions}}
    votes = {name: votes_on(known.line, run_id, sources.config) for run_id, name in names.items()}
    data = known.prefect.deployment.data if known.prefect and known.prefect.deployment else None
    place = rows.directory(known.line, data, sources)
    return page(request, "try.html", state=known, votes=votes, place=place, refresh=0)


ROUTES = [Route("/lines/{name}/try", show)]
