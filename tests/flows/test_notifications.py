"""Who is told about a retrain: by real blocks of a real Prefect server, over real HTTP."""

import logging
from collections.abc import Iterator

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock, MattermostWebhook
from prefect.blocks.system import Secret

from backprop_core.errors import AddressForbidden, BlockUnknown, InputNotFound
from backprop_core.schema.refs import RunResult
from backprop_core.schema.specs import ApprovalSpec, GateSpec, LoraSpec, TrainSpec
from flows.retrain import retrain
from tasks.runs.notifications import Audience, presentable
from tests.wire.stand_in import Request, Service

pytestmark = pytest.mark.usefixtures("warm_worker", "prefect", "home")
HOOK, TOKEN = "/hooks/team-secret", "a" * 24


class Channel(Service):
    """Where a team reads: keeps title and text of what is posted."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[tuple[str, str]] = []

    def answer(self, request: Request) -> None:
        sent = request.json()
        self.posted.append((sent.get("title", ""), sent["text"]))
        request.reply(200, {})


@pytest.fixture
def channel() -> Iterator[Channel]:
    with Channel().running() as channel:
        text = {"title": "{{subject}}", "text": "{{body}}"}
        webhook = CustomWebhookNotificationBlock(name="team", url=channel.url + HOOK, json_data=text)
        webhook.save("team", overwrite=True)
        port = int(channel.url.rpartition(":")[2])
        chat = MattermostWebhook(hostname="127.0.0.1", port=port, token=TOKEN, secure=False)
        chat.save("team", overwrite=True)
        yield channel


def test_a_team_is_told(channel, base, data, home, caplog):
    """Waiting, rejected, released and failed are told in the result's sentences; what cannot be sent is one warning."""

    def night(data: str, **parameters: object) -> RunResult:
        return retrain(
            "support",
            data,
            model=str(base),
            training=TrainSpec(steps=2, batch_size=8, learning_rate=1e-2, lora=LoraSpec(rank=4)),
            gate=GateSpec(max_drop=1),
            notify=["custom-webhook/team", "mattermost-webhook/team"],
            **parameters,
        )

    rejected = night(data[0], approval=ApprovalSpec(ask=True, hours=1e-4))
    titles, texts = zip(*channel.posted, strict=True)
    assert titles[::2] == ("line support waits for approval", "line support rejected")
    assert all(title in text for title, text in zip(titles[::2], texts[1::2], strict=True))
    assert rejected.gate.reason in texts[0] and "/runs/flow-run/" in texts[0]
    assert rejected.reason in texts[2] and rejected.run_id in texts[2]
    channel.fail(f"POST {HOOK}", "500")
    with caplog.at_level(logging.WARNING, logger="tasks.runs.notifications"):
        released = night(data[0])
    assert released.status == "finished" and "line support released version 1" in channel.posted[-1][1]
    [warning] = [record.getMessage() for record in caplog.records if record.name == "tasks.runs.notifications"]
    assert warning == "could not notify custom-webhook/team that line support released version 1 (HTTPStatusError)"
    count = len(channel.posted)
    assert night(data[0]).status == "unchanged" and len(channel.posted) == count
    with pytest.raises(InputNotFound):
        night(str(home / "gone.jsonl"))
    title, text = channel.posted[count]
    assert title == "line support failed" and "[INPUT_NOT_FOUND]" in text and "gone.jsonl" in text
    assert str(home.parent) not in "".join(text for _, text in channel.posted)


def test_a_block_that_cannot_be_told_is_refused(channel):
    """No block, one that sends nothing, and one that sends to a machine's credentials: known before any work."""
    Secret(value="x").save("plain")
    CustomWebhookNotificationBlock(name="x", url="http://169.254.169.254/latest").save("metadata")
    for name in ("slack-webhook/none", "no-such-type/team", "secret/plain"):
        with pytest.raises(BlockUnknown, match=name):
            Audience("support").invite([name])
    with pytest.raises(AddressForbidden):
        Audience("support").invite(["custom-webhook/metadata"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no file /data/nights/1.jsonl; put it there", "no file 1.jsonl; put it there"),
        ("see https://host/a/b and 3/4, and/or ./c/d.txt", "see https://host/a/b and 3/4, and/or d.txt"),
        ("3 of 4 / 5", "3 of 4 / 5"),
        (r"C:\data\rows.jsonl is gone", "rows.jsonl is gone"),
        ("cannot read '~/a/b.csv': hf_" + "a" * 20, "cannot read 'b.csv': ***"),
    ],
)
def test_what_is_told_names_no_place(text, shown):
    """Of a path its last name is told, of an address all; secrets are blanked."""
    assert presentable(text) == shown
