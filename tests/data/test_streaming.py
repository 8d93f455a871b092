"""Rendering while training is rendering before it: the same examples in a seeded order, each once an epoch."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from tinker_utils.batching import epoch_order
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data import streaming
from tinker_utils.data.files import ChatIndex, read_conversations
from tinker_utils.data.renderers import as_renderer, render
from tinker_utils.data.streaming import RenderedFile, StreamedPlan, StreamedSet, describe, render_all
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import RenderingError

ROWS, LIMIT = 150, 40


class Counting:
    """A tokenizer that counts the texts it is given."""

    is_fast = True

    def __init__(self, tokenizer) -> None:
        self.texts = Counter()
        self._tokenizer = tokenizer
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.chat_template = tokenizer.chat_template

    def __call__(self, text, **options):
        self.texts.update(text)
        return self._tokenizer(text, **options)

    def apply_chat_template(self, conversation, **options):
        return self._tokenizer.apply_chat_template(conversation, chat_template=self.chat_template, **options)


@pytest.fixture
def tokenizer():
    return Counting(load_tokenizer(TrainingConfig(service="local", model="tiny")))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(streaming, "_AWAITED_BYTES", 500)


@pytest.fixture
def path(tmp_path):
    """Conversations of many lengths: most fit, some are cut, some lose their answer, some hold none."""
    path = tmp_path / "train.jsonl"
    rng = np.random.default_rng(0)
    lines = []
    for row in range(ROWS):
        turns = [("user", f"{row} " + "word " * rng.integers(1, 30)), ("assistant", "yes " * rng.integers(0, 30))]
        turns = turns[:1] if row % 10 == 3 else turns
        lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    path.write_text("\n".join(lines))
    return path


def streamed(path, tokenizer):
    return RenderedFile(ChatIndex(path), as_renderer(tokenizer), LIMIT)


def plan_of(path, tokenizer):
    return StreamedPlan(streamed(path, tokenizer), batch_size=4, seed=7, epochs=3)


def by_content(examples):
    return [(example.tokens.tolist(), example.weights.tolist()) for example in examples]


def test_all_at_once_is_what_render_gives(path, tokenizer):
    whole = render(read_conversations(path), tokenizer, LIMIT)
    assert whole.cut > whole.skipped > 0 and whole.unanswered == ROWS // 10  # the file has examples of every kind
    at_once = render_all(streamed(path, tokenizer))
    assert by_content(at_once.examples) == by_content(whole.examples)
    assert (at_once.cut, at_once.skipped, at_once.unanswered) == (whole.cut, whole.skipped, whole.unanswered)


def test_each_epoch_is_a_permutation_of_the_usable_examples(path, tokenizer):
    whole = render(read_conversations(path), tokenizer, LIMIT)
    plan = plan_of(path, tokenizer)
    answered = ROWS - ROWS // 10
    assert (len(plan.conversations), plan.steps_per_epoch) == (answered, -(-answered // 4))
    for epoch in (1, 2, 3):
        steps = range((epoch - 1) * plan.steps_per_epoch + 1, epoch * plan.steps_per_epoch + 1)
        seen = [example for step in steps for example in plan.batch(step).data]
        assert sorted(by_content(seen)) == sorted(by_content(whole.examples))
        rows = [row for step in steps for row in plan.indices(step).tolist()]
        assert rows == epoch_order(answered, 7, epoch).tolist()
        assert by_content(seen) == by_content(each for row in rows for each in plan.conversations[row])


def test_every_text_is_rendered_once_an_epoch(path, tokenizer):
    plan = plan_of(path, tokenizer)
    for epoch in (1, 2, 3):
        for step in range((epoch - 1) * plan.steps_per_epoch + 1, epoch * plan.steps_per_epoch + 1):
            plan.batch(step)
            plan.batch(step)  # as a budget does, which asks for the next step's tokens
        assert len(tokenizer.texts) == ROWS - ROWS // 10
        assert max(tokenizer.texts.values()) <= epoch


def test_a_run_that_was_cut_off_sees_the_batches_that_were_left(path, tokenizer):
    first, second = plan_of(path, tokenizer), plan_of(path, Counting(tokenizer._tokenizer))
    expected = {step: by_content(first.batch(step).data) for step in range(1, first.total_steps + 1)}
    assert {step: by_content(second.batch(step).data) for step in range(17, first.total_steps + 1)} == {
        step: batch for step, batch in expected.items() if step >= 17
    }


def test_no_more_than_a_few_blocks_are_held(path, tokenizer, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 8)
    plan = plan_of(path, tokenizer)
    for step in range(1, plan.total_steps + 1):
        plan.batch(step)
        assert sum(map(len, tuple(plan.conversations._held))) <= streaming._BLOCKS_HELD * (8 + 4)


def test_what_is_known_of_a_part_is_an_estimate_of_the_whole(path, tokenizer):
    whole = render(read_conversations(path), tokenizer, LIMIT)
    plan = plan_of(path, tokenizer)
    plan.batch(1)
    part = StreamedSet.of(plan.conversations, 0.0)
    assert not part.exact
    assert "about" in describe(part, "train", LIMIT)
    assert part.tokens == pytest.approx(whole.tokens, rel=0.5)
    render_all(plan.conversations)
    full = StreamedSet.of(plan.conversations, 0.0)
    assert full.exact
    assert (full.tokens, full.completion_tokens) == (whole.tokens, whole.completion_tokens)
    assert (full.cut, full.skipped) == (whole.cut, whole.skipped)
    usable = list(map(bool, plan.conversations))
    assert full.lengths()[usable].tolist() == whole.lengths().tolist()
    assert "about" not in describe(full, "train", LIMIT)


def test_conversations_that_the_template_refuses_are_skipped_up_to_a_share(path, tokenizer):
    tokenizer.chat_template = "{% if messages[0].content[:1] == '7' %}{{ raise_exception('no') }}{% endif %}" + (
        tokenizer.chat_template
    )
    plan = plan_of(path, tokenizer)
    refused = {row for row in range(ROWS) if str(row).startswith("7") and row % 10 != 3}
    whole = render_all(plan.conversations, len(refused) / ROWS)
    assert whole.unusable == len(refused) == 10
    assert all("the chat template refused" in problem and "train.jsonl:" in problem for problem in whole.problems)
    with pytest.raises(RenderingError, match=r"train.jsonl:8: the chat template refused .* 10 of 150 lines"):
        StreamedSet.of(plan.conversations, 0.06)
