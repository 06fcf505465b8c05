"""The API keeps its own description: each operation is called with what it says it takes, and with what it does not."""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from backprop_core.runtime.settings import settings as home_settings
from flows.server import users
from tests.flows.server.web.conftest import LineMaker, Pages, people

schemathesis = pytest.importorskip("schemathesis")
MORE = os.environ.get("BACKPROP_API_EXAMPLES")  # other ones each time
EXAMPLES = int(MORE or "4")  # of each operation, of what fits and of what does not


@pytest.mark.parametrize("role", ["act", "look", None], ids=str)
def test_every_operation_keeps_its_description(support: LineMaker, pages: Pages, role: users.Role | None) -> None:
    """No 5xx but of a server that is away; status, kind and content of each answer are as described."""
    people(ann=role or "act")
    token = users.new_token("ann", home_settings())[1]
    headers = {"Host": "testserver", "Authorization": f"Bearer {token}"}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", pages().app, headers=headers)
    own = headers if role else {"Host": "testserver"}
    checks = [
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
        schemathesis.specs.openapi.checks.response_headers_conformance,
    ]
    accepted = schemathesis.specs.openapi.checks.negative_data_rejection
    called = 0
    for each in schema.get_all_operations():
        operation = each.ok()
        for mode in schemathesis.GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=EXAMPLES,
                derandomize=not MORE,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            def answers(case: schemathesis.Case) -> None:
                answer = case.call(headers=own)
                too_large = answer.status_code == 413  # a refusal, which Schemathesis does not know as one
                case.validate_response(answer, checks=checks if too_large else [*checks, accepted])
                assert answer.status_code < 500 or answer.status_code == 503, case.as_curl_command()
                if role is None:
                    assert answer.status_code == 401
                elif role == "look" and case.method not in ("GET", "HEAD"):
                    assert answer.status_code >= 400

            answers()
            called += 1
    assert called >= 20
