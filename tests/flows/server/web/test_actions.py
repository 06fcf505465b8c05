"""What a person does on a page is one write to Prefect, and only a page of ours can ask for it."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import CronSchedule
from prefect.input.run_input import keyset_from_base_key
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Paused, Running
from starlette.testclient import TestClient

from backprop_core.lines import votes
from backprop_core.runtime.settings import settings
from flows import approval
from flows.server import audit
from flows.server.web import actions
from flows.server.web.forms import MOST_FIELDS
from tasks.runs.prefect_artifacts import as_json
from tests.flows.server.web.conftest import EVIL, LineMaker, Pages, gate, people, result, run_id, sign_in, vote

HERE = {"Origin": "http://testserver"}


@pytest.fixture
def browser(client: SyncPrefectClient, support: LineMaker, pages: Pages) -> TestClient:
    """A browser that has loaded the page of the line, with Prefect there."""
    api = get_current_settings().api.url
    assert api
    return pages(api)


@pytest.fixture
def deployments(client: SyncPrefectClient) -> Iterator[dict[str, UUID]]:
    """The deployments of the line and of rollbacks, with a schedule."""
    nightly = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *", timezone="UTC"))
    flows = {name: client.create_flow_from_name(name) for name in ("retrain", "rollback")}
    made = {
        "retrain": client.create_deployment(
            flows["retrain"], "support", parameters={"line": "support", "min_new_rows": 7}, schedules=[nightly]
        ),
        "rollback": client.create_deployment(flows["rollback"], "roll-back-a-line"),
    }
    yield made
    for deployment in made.values():
        for run in runs(client, deployment):
            client.delete_flow_run(run.id)
        client.delete_deployment(deployment)


def runs(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    """What was asked of a deployment by hand."""
    of = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    return [run for run in client.read_flow_runs(deployment_filter=of) if not run.auto_scheduled]


@pytest.fixture
def question(client: SyncPrefectClient) -> Iterator[str]:
    """A version that waits for a person, as a retrain asks."""
    made = result(run_id(9), None, gate(f"better {EVIL}", {"routing": 0.95}), ["routing"], steps=1)
    asked = {"line": "support", "run_id": run_id(9), "hours": 1.0}
    run = client.create_flow_run(approval.approval, parameters=asked, state=Running(), tags=["backprop"])
    candidate = ArtifactCreate(key="backprop-candidate", type="markdown", data=as_json(made), flow_run_id=run.id)
    client.create_artifact(candidate)
    keys: Any = keyset_from_base_key(f"paused-{run_id(9)}")
    approval.Approval.with_initial_data(description="").save(keys, flow_run_id=run.id)
    paused: State[None] = Paused(timeout_seconds=3600, pause_key=run_id(9))
    paused.state_details.run_input_keyset = keys
    client.set_flow_run_state(run.id, paused)
    yield str(run.id)
    client.delete_flow_run(run.id)


def token(browser: TestClient) -> str:
    """The token of the page; the browser keeps its cookie."""
    [found] = {*re.findall('name="token" value="([0-9a-f]{64})"', browser.get("/lines/support").text)}
    return str(found)


def press(browser: TestClient, path: str, headers: dict[str, str] = HERE, **fields: str) -> Any:
    """Send a form of the page."""
    return browser.post(f"/lines/support/{path}", data={"token": token(browser), **fields}, headers=headers)


def test_one_click_retrains(
    browser: TestClient, client: SyncPrefectClient, deployments: dict[str, UUID], support: LineMaker
) -> None:
    """The line's deployment runs with its own parameters; a second click says that a run is due."""
    assert 'action="/lines/support/retrain"' in browser.get("/").text  # one click from the start page
    assert press(browser, "retrain").headers["location"] == "/lines/support?done=retrain"
    [run] = runs(client, deployments["retrain"])
    assert run.parameters == {"line": "support", "min_new_rows": 7}
    again = press(browser, "retrain")
    assert again.status_code == 409 and "STATE_RUN_ACTIVE" in again.text
    assert len(runs(client, deployments["retrain"])) == 1
    assert "begins soon" in browser.get("/lines/support").text


def test_the_start_page_says_how_the_last_run_ended(
    browser: TestClient, client: SyncPrefectClient, deployments: dict[str, UUID]
) -> None:
    """Why a line did nothing last night is read without a click; a later run of something else hides it not."""
    for name, reason in (("retrain", f"0 rows are new {EVIL}"), ("rollback", "version 1 is live")):
        run = client.create_flow_run_from_deployment(deployments[name], parameters={"line": "support"})
        ended: State[None] = Completed(name="Unchanged", message=reason)
        client.set_flow_run_state(run.id, ended, force=True)
    text = browser.get("/").text
    assert "Unchanged" in text and "0 rows are new &lt;script&gt;" in text and "version 1 is live" not in text


def test_clicks_at_once_are_one_run(
    browser: TestClient, client: SyncPrefectClient, deployments: dict[str, UUID]
) -> None:
    """Sixteen clicks in a moment start one run, also while Prefect has more to do than its database takes."""
    data = {"token": token(browser)}

    def click(_: int) -> Any:
        return browser.post("/lines/support/retrain", data=data, headers=HERE)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(click, range(16)))
    assert {answer.status_code for answer in answers} <= {303, 409}, [answer.text for answer in answers]
    assert len(runs(client, deployments["retrain"])) == 1


def test_clicks_are_one_run_by_the_time_between_them(
    browser: TestClient, client: SyncPrefectClient, deployments: dict[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are one run for as long as the same click is the same; a later one is another run."""
    for seconds, made in ((3600, 1), (3600, 1), (0, 2), (3600, 2)):
        monkeypatch.setattr(actions, "AT_ONCE", seconds)
        assert press(browser, "rollback", to="1").status_code == 303
        assert len(runs(client, deployments["rollback"])) == made


def test_a_click_is_never_lost(browser: TestClient, client: SyncPrefectClient, deployments: dict[str, UUID]) -> None:
    """A click just after the run of the last one has ended starts nothing, and says so."""
    assert press(browser, "rollback", to="1").status_code == 303
    [run] = runs(client, deployments["rollback"])
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    again = press(browser, "rollback", to="1")
    if again.status_code == 303:  # two seconds have passed
        assert len(runs(client, deployments["rollback"])) == 2
    else:
        assert again.status_code == 409 and "STATE_RUN_ACTIVE" in again.text


def test_a_question_whose_time_is_over(browser: TestClient, client: SyncPrefectClient, question: str) -> None:
    """An answer that comes too late is refused as such."""
    paused: State[None] = Paused(timeout_seconds=-5, pause_key=run_id(9))
    paused.state_details.run_input_keyset = keyset_from_base_key(f"paused-{run_id(9)}")  # type: ignore[assignment]
    client.set_flow_run_state(UUID(question), paused, force=True)
    late = press(browser, f"questions/{question}", answer="approve")
    assert late.status_code == 409 and "STATE_ALREADY_ANSWERED" in late.text


def test_without_a_deployment_it_says_what_to_do(browser: TestClient) -> None:
    """A line without a job file cannot be retrained from here: the code and the next step are on the page."""
    answer = press(browser, "retrain")
    assert answer.status_code == 404 and "DEP_DEPLOYMENT_MISSING" in answer.text and "backprop init" in answer.text


def test_while_prefect_is_away_nothing_is_done(support: LineMaker, pages: Pages) -> None:
    """A click says that Prefect does not answer, with what to do, and can be repeated."""
    browser = pages()
    for path, fields in (("retrain", {}), ("rollback", {"to": "1"}), (f"questions/{uuid4()}", {"answer": "approve"})):
        answer = press(browser, path, **fields)
        assert answer.status_code == 503 and "DEP_PREFECT_UNREACHABLE" in answer.text


def test_what_waits_is_shown_and_answered(browser: TestClient, client: SyncPrefectClient, question: str) -> None:
    """The scores of the candidate are on the page; the answer and the reason reach the question; it is asked once."""
    text = browser.get("/lines/support").text
    assert "90.0 % → 95.0 %" in text and "+5.0 points" in text and "better &lt;script&gt;" in text
    assert f'action="/lines/support/questions/{question}"' in browser.get("/").text  # one click from the start page
    assert press(browser, f"questions/{question}", answer="maybe").status_code == 400
    assert press(browser, f"questions/{question}", answer="approve", reason=f"good {EVIL}").status_code == 303
    key = keyset_from_base_key(f"paused-{run_id(9)}")["response"]
    assert client.read_flow_run_input(UUID(question), key) == f'{{"answer":"approve","reason":"good {EVIL}"}}'
    late = press(browser, f"questions/{question}", answer="reject")
    assert late.status_code == 409 and "STATE_ALREADY_ANSWERED" in late.text


def test_of_two_people_one_decides(browser: TestClient, client: SyncPrefectClient, question: str) -> None:
    """Approve and reject at once: one answer counts, the other person is told."""
    data = {"token": token(browser)}

    def say(answer: str) -> int:
        fields = data | {"answer": answer}
        return int(browser.post(f"/lines/support/questions/{question}", data=fields, headers=HERE).status_code)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(say, ["approve", "reject"])) == [303, 409]


def test_of_two_users_the_one_who_decides_is_named(
    browser: TestClient, client: SyncPrefectClient, question: str, deployments: dict[str, UUID]
) -> None:
    """Two users answer at once: one counts, under that user's name; the other is told. A rollback has its name too."""
    people(ann="act", bob="act")
    users = {name: TestClient(browser.app, follow_redirects=False) for name in ("ann", "bob")}
    for name, user in users.items():
        sign_in(user, name)
    given = {name: token(user) for name, user in users.items()}

    def say(name: str) -> int:
        data = {"token": given[name], "answer": "approve" if name == "ann" else "reject"}
        return int(users[name].post(f"/lines/support/questions/{question}", data=data, headers=HERE).status_code)

    with ThreadPoolExecutor(2) as pool:
        statuses = dict(zip(users, pool.map(say, users), strict=True))
    assert sorted(statuses.values()) == [303, 409]
    key = keyset_from_base_key(f"paused-{run_id(9)}")["response"]
    kept = json.loads(client.read_flow_run_input(UUID(question), key))
    assert statuses[kept["name"]] == 303 and kept["answer"] == ("approve" if kept["name"] == "ann" else "reject")
    found = {each.who: each.status for each in audit.entries(settings(), 10) if each.what == "answer"}
    assert found == statuses
    assert press(users["bob"], "rollback", to="1").status_code == 303
    assert [run.tags for run in runs(client, deployments["rollback"])] == [["by:bob"]]


def test_a_rollback_takes_two_clicks(
    browser: TestClient, client: SyncPrefectClient, deployments: dict[str, UUID]
) -> None:
    """The first shows what would change, the second starts the rollback, with the reason."""
    [first] = re.findall('class="button" href="([^"]+/rollback[^"]+)"', browser.get("/lines/support").text)
    page = browser.get(first).text
    assert "Make version 1 of support live?" in page and "backprop rollback support --to 1" in page
    assert press(browser, "rollback", to="1", reason="worse answers").status_code == 303
    [run] = runs(client, deployments["rollback"])
    assert run.parameters == {"line": "support", "to": 1, "reason": "worse answers"}
    for to, status in (("2", 400), ("9", 404), ("-1", 404), ("../1", 404), ("", 404), ("1" * 99, 404)):
        assert press(browser, "rollback", to=to).status_code == status
        assert browser.get("/lines/support/rollback", params={"to": to}).status_code == status


def test_a_schedule_is_paused_and_nothing_else_changes(
    browser: TestClient, client: SyncPrefectClient, deployments: dict[str, UUID]
) -> None:
    """Pause and resume change whether it is active, neither its time nor the deployment."""
    before = client.read_deployment(deployments["retrain"])
    [schedule] = before.schedules
    for active in (False, True):
        fields = {"schedule": str(schedule.id), "active": str(active).lower()}
        assert press(browser, "schedule", **fields).status_code == 303
        [after] = client.read_deployment(deployments["retrain"]).schedules
        assert (after.active, after.schedule) == (active, schedule.schedule)
    assert client.read_deployment(deployments["retrain"]).parameters == before.parameters
    assert press(browser, "schedule", schedule=str(uuid4()), active="true").status_code == 404


FORGED = [
    {"token": None},
    {"token": ""},
    {"token": "0" * 64},
    {"token": "é"},
    {"cookie": "other"},
    {"cookie": None},
    {"Origin": None},
]


@pytest.mark.parametrize("forged", FORGED, ids=str)
@pytest.mark.parametrize("path", ["retrain", "rollback", "schedule", f"questions/{UUID(int=7)}"])
def test_forged_forms_are_refused(support: LineMaker, pages: Pages, path: str, forged: dict[str, str | None]) -> None:
    """No write without the token of a page, the cookie of the same browser, and an Origin; Prefect is not asked."""
    browser = pages()
    data, headers = {"token": token(browser)}, dict(HERE)
    if "token" in forged:
        data = {"token": forged["token"]} if forged["token"] is not None else {}
    if "cookie" in forged:
        browser.cookies.clear()
        if forged["cookie"]:
            browser.cookies.set("backprop-page", forged["cookie"])
    if "Origin" in forged:
        headers = {}
    answer = browser.post(f"/lines/support/{path}", data=data, headers=headers)
    assert answer.status_code == 403 and "INPUT_FORM_EXPIRED" in answer.text


def test_other_sites_are_refused(support: LineMaker, pages: Pages) -> None:
    """A form of another site, or one in a frame without an origin, is refused even with token and cookie."""
    browser = pages()
    for origin in ("http://evil.example", "null", "http://testserver.evil.example"):
        assert press(browser, "retrain", headers={"Origin": origin}).status_code == 403
    cookie = pages().get("/lines/support").headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    protected = pages(password="team:horse staple")
    assert protected.post("/lines/support/retrain", headers=HERE).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xff\xfe", 400),
        (b"a=" + b"x" * 70_000, 413),
        (b"&".join([b"a=b"] * (MOST_FIELDS + 1)), 400),
        (b'{"token": "a"}', 403),
    ],
    ids=["no text", "too large", "too many fields", "no form"],
)
def test_what_is_no_form_is_refused(support: LineMaker, pages: Pages, body: bytes, status: int) -> None:
    """Too large, too many fields, no text: refused with a code."""
    answer = pages().post("/lines/support/retrain", content=body, headers=HERE)
    assert answer.status_code == status and "Code:" in answer.text


def test_a_download_has_its_digest_and_ranges(support: LineMaker, pages: Pages) -> None:
    """The file is the bytes of the store; a part that was interrupted is gone on with; the digest is in a header."""
    browser = pages()
    links = re.findall('href="(/lines/support/versions/[^"]+)"', browser.get("/lines/support").text)
    assert len(links) == 6
    [link] = [each for each in links if each.endswith("v2-q8_0.gguf")]
    whole = browser.get(link)
    digest = hashlib.sha256(whole.content).digest()
    assert whole.content == b"GGUF" + bytes([2]) * 1000
    assert whole.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert 'filename="support-v2-q8_0.gguf"' in whole.headers["content-disposition"]
    part = browser.get(link, headers={"Range": "bytes=1000-", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, whole.content[1000:])
    changed = browser.get(link, headers={"Range": "bytes=1000-", "If-Range": '"another"'})
    assert changed.status_code == 200
    assert browser.get(link, headers={"Range": "bytes=5000-"}).status_code == 416
    assert browser.head(link).headers["content-length"] == "1004"


@pytest.mark.parametrize(
    "path",
    [
        "2/files/none",
        "2/files/..%2f..%2f..%2fmlflow.db",
        "2/files/%2e%2e%2fartifact.json",
        "2/files/artifact.json",
        "2/files/support-v1-q8_0.gguf",
        "9/files/support-v2-q8_0.gguf",
        "0/files/support-v2-q8_0.gguf",
        "..%2f2/files/support-v2-q8_0.gguf",
        "-1/files/support-v2-q8_0.gguf",
        "2/files//etc/passwd",
    ],
)
def test_only_files_of_a_version_can_be_downloaded(support: LineMaker, pages: Pages, path: str) -> None:
    """A name is looked up among the version's files, never made into a path."""
    assert pages().get(f"/lines/support/versions/{path}").status_code == 404


def test_a_changed_or_linked_file_is_not_served(support: LineMaker, pages: Pages) -> None:
    """A symlink in an artifact, or a list of files that is not the artifact's own, is no download."""
    version = support.lines.version("support", 2)
    directory = support.store.layout.artifact(version.merged.digest)
    weights, manifest = directory / "adapter_model.safetensors", directory / "artifact.json"
    directory.chmod(0o755)
    link = "/lines/support/versions/2/files/support-v2-adapter_model.safetensors"
    assert pages().get(link).status_code == 200
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    assert pages().get(link).status_code == 404
    config = "/lines/support/versions/2/files/support-v2-adapter_config.json"
    assert pages().get(config).status_code == 200
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text().replace("adapter_config", "../adapter"))
    assert pages().get(config).status_code == 404


def test_the_user_is_on_record(
    client: SyncPrefectClient, deployments: dict[str, UUID], question: str, support: LineMaker, pages: Pages
) -> None:
    """Who approved and who rolled back is recorded by the name of `serve --auth`."""
    browser = pages(str(get_current_settings().api.url), "team:horse staple")
    browser.auth = ("team", "horse staple")
    assert press(browser, "rollback", to="1").status_code == 303
    assert runs(client, deployments["rollback"])[0].tags == ["by:team"]
    assert press(browser, f"questions/{question}", answer="approve", reason="good").status_code == 303
    said = client.read_flow_run_input(UUID(question), keyset_from_base_key(f"paused-{run_id(9)}")["response"])
    answer = approval.Approval.model_validate_json(said)
    assert answer.decision("person").sentence == "approved by team: good"


def test_votes_are_evidence_where_it_waits(browser: TestClient, question: str, support: LineMaker) -> None:
    """The decision shows how people have voted on the candidate's answers, and what they wrote, as text."""
    votes.add("support", vote(run_id(9)), support.store)
    page = browser.get("/lines/support").text
    assert "1 better, 0 same, 0 worse" in page and "ann: right team &lt;script&gt;" in page and EVIL not in page
