"""The flow that answers prompts for other services."""

import json

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from backprop_core.errors import InputValidationFailed, RunUnknown
from backprop_core.runtime.settings import settings
from backprop_core.schema.specs import GenerationSpec
from flows.generate import generate
from tasks.runs.sample_answers import answers
from tests import tiny_line

ASKED = ["Which team takes this request? I got the wrong radio. Thanks!", "Hello"]
SPEC = GenerationSpec(max_new_tokens=12)
pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")


def test_the_answers_are_an_artifact() -> None:
    """They are those of the command line, one for each prompt in its order; the run says how many."""
    tiny_line.write(settings())
    made = generate("support", ASKED, generation=SPEC)
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["backprop-answers"]))
        )
    told = json.loads(str(artifact.data).removeprefix("```json\n").removesuffix("\n```"))
    assert told == answers("support", ASKED, system=None, spec=SPEC).model_dump(mode="json")
    assert (made.status, made.reason) == ("finished", "2 prompts answered")


def test_what_cannot_be_answered() -> None:
    """A model that is unknown, or no prompt at all, is a code."""
    with pytest.raises(RunUnknown):
        generate("nothing", ASKED)
    tiny_line.write(settings())
    with pytest.raises(InputValidationFailed):
        generate("support", [])
