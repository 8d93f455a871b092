"""What is held out for validation: by the prompt, and by nothing else."""

from __future__ import annotations

import json

import pytest

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.joined import JoinedChats
from tinker_utils.data.split import holds_out
from tinker_utils.errors import DataError
from tinker_utils.plan.preparing import prepare


def row(prompt, answer):
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def prompts(chats):
    return [conversation.messages[0]["content"] for conversation in chats]


def split(path, share=0.3, seed=0):
    index = ChatIndex(path, holds_out=holds_out(share, seed))
    return prompts(index), prompts(index.held_out)


ROWS = [row(f"Question {i}", f"Answer {i}") for i in range(400)]


def test_each_conversation_is_on_one_side_and_the_share_is_about_what_is_asked_for(tmp_path):
    kept, held_out = split(write(tmp_path / "a.jsonl", ROWS))
    assert sorted(kept + held_out) == sorted(f"Question {i}" for i in range(400))
    assert 80 < len(held_out) < 160, "0.3 of 400, within four standard errors"
    assert split(tmp_path / "a.jsonl", seed=1)[1] != held_out
    # A larger share holds out the same ones, and more.
    assert set(held_out) < set(split(tmp_path / "a.jsonl", share=0.5)[1])


def test_lines_that_are_added_move_none_of_those_that_were_there(tmp_path):
    before = split(write(tmp_path / "a.jsonl", ROWS[::2]))[1]
    after = split(write(tmp_path / "a.jsonl", ROWS[::-1]))[1]
    assert set(before) == set(after) & set(prompts(ChatIndex(write(tmp_path / "b.jsonl", ROWS[::2]))))


def test_a_prompt_stays_on_one_side_with_all_its_answers(tmp_path):
    others = [row(f"  QUESTION   {i}\n", f"Another answer {i}") for i in range(400)]
    kept, held_out = split(write(tmp_path / "a.jsonl", [*ROWS, *others]))
    normal = [{" ".join(prompt.lower().split()) for prompt in side} for side in (kept, held_out)]
    assert not normal[0] & normal[1]
    assert len(held_out) % 2 == 0


def test_places_and_problems_stay_what_they_were(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in ROWS[:50]) + "no JSON\n", encoding="utf-8")
    index = ChatIndex(path, max_skipped_share=0.1, holds_out=holds_out(0.5, 0))
    for conversation in (*index, *index.held_out):
        line = int(conversation.source.rpartition(":")[2])
        assert conversation.messages == tuple(ROWS[line - 1]["messages"])
    assert (index.unusable, index.held_out.unusable) == (1, 0)


def test_a_run_is_prepared_with_what_is_held_out_of_all_sources(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", ROWS[start : start + 40]) for name, start in (("a", 0), ("b", 40))]
    settings = {"data.train": [str(path) for path in paths], "data.valid_fraction": 0.25}
    config = TrainingConfig(service="local", model="tiny").with_overrides(settings)
    plan = prepare(config)
    by_hand = [each for each in ROWS[:80] if holds_out(0.25, 0)(next(iter(ChatIndex(write(tmp_path / "one", [each])))))]
    texts = [plan.tokenizer.decode(example.tokens) for example in plan.valid.examples]
    assert len(texts) == len(by_hand)
    assert all(each["messages"][0]["content"] in text for each, text in zip(by_hand, texts, strict=True))
    assert len(plan.train.examples) == 80 - len(by_hand)
    assert plan.held_out[0].name == "a.jsonl, held out and b.jsonl, held out"


@pytest.mark.parametrize("at_once", [0, 1 << 20])
def test_the_share_that_may_be_skipped_is_of_all_lines_those_that_are_held_out_too(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("tinker_utils.plan.preparing._RENDERED_AT_ONCE", at_once)
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in ROWS[:99]) + "no JSON\n", encoding="utf-8")
    config = TrainingConfig(service="local", model="tiny", data_dir=tmp_path, valid_fraction=0.3)
    plan = prepare(config)  # 1 of 100 may be: without those held out it would be 1 of about 70
    assert plan.train.unusable == 1
    assert any("1 of 100 lines are skipped" in finding for finding in plan.findings)


@pytest.mark.parametrize(
    ("share", "words"), [(1e-9, "holds out nothing of 1 conv"), (0.999999999, "leaves nothing to")]
)
def test_a_side_without_a_conversation_is_refused(tmp_path, share, words):
    write(tmp_path / "train.jsonl", ROWS[:1])
    with pytest.raises(DataError, match=words):
        prepare(TrainingConfig(service="local", model="tiny", data_dir=tmp_path, valid_fraction=share))


def test_several_indexes_are_read_as_one(tmp_path):
    one, other = (ChatIndex(write(tmp_path / f"{i}.jsonl", ROWS[i * 10 : i * 10 + 10])) for i in range(2))
    both = JoinedChats([one, other])
    assert prompts(both) == [f"Question {i}" for i in range(20)]
    assert prompts(both.conversations([15, 3, 10, 0])) == [f"Question {i}" for i in (15, 3, 10, 0)]
    assert (len(both), both.lines, both.name) == (20, 20, "0.jsonl and 1.jsonl")
