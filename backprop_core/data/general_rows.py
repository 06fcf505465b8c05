"""Rows of a base's own answers: training on them keeps what the base can do and no dataset has.

Self-synthesized rehearsal [arXiv 2403.01244] with prompts that are given, not generated.
"""

from collections.abc import Sequence

from backprop_core.data.row_files import ROWS
from backprop_core.schema.refs import Answers, RowsRef
from backprop_core.store.artifacts import Store
from backprop_core.store.cache_keys import canonical


def own_answers(questions: Sequence[str], answers: Answers, *, store: Store) -> RowsRef:
    """Commit a row for each question with a complete answer: one that was cut off would teach to stop anywhere."""
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
        for question, answer in zip(questions, answers.answers, strict=False)  # a plan has one stand-in answer
        if answer.stopped and answer.text.strip()
    ]
    with store.begin("rows") as directory:
        text = "".join(canonical({"messages": messages}) + "\n" for messages in turns)
        (directory / ROWS).write_text(text, encoding="utf-8", newline="\n")
        return store.commit(directory, RowsRef, record={"stage": "own_answers"}, rows=len(turns))
