"""One PREFECT_HOME for all: the database of a first use takes seconds to make."""

import pytest


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("prefect"))
