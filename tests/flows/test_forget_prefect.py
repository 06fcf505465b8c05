"""Prefect's artifacts that quote a forgotten row are removed from the user's server, all others stay."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterId

from backprop_core.data.row_quotes import Quotes
from backprop_core.runtime.settings import settings
from tasks.runs.prefect_quotes import artifacts

TEXT = "call Ann Smith at noon"


@pytest.mark.usefixtures("prefect", "home")
def test_only_artifacts_with_quotes_are_removed(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A plan names them, and removes none."""
    monkeypatch.setenv("BACKPROPAGATE_NAMESPACE", "forgetful")
    quotes = Quotes([TEXT])
    pages = (("forgetful-result", "x"), ("forgetful-result", TEXT), ("of-another-project", TEXT))
    with get_client(sync_client=True) as client:
        mine, quoting, other = [
            client.create_artifact(ArtifactCreate(key=key, type="markdown", data=f'{{"answer": "{text}"}}')).id
            for key, text in pages
        ]
        assert artifacts(settings(), quotes, delete=False) == [f"forgetful-result {quoting}"]
        assert artifacts(settings(), quotes, delete=True) == [f"forgetful-result {quoting}"]
        of_the_test = ArtifactFilter(id=ArtifactFilterId(any_=[mine, quoting, other]))
        left = {one.id for one in client.read_artifacts(artifact_filter=of_the_test)}
    assert left == {mine, other}
    assert artifacts(settings(), quotes, delete=False) == []
