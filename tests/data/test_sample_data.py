"""The sample data: what the generator writes, and what a training run may rely on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "sample"
BASE_MODEL = ROOT / "tinker_utils" / "local" / "base_model"
SPLITS = ("train", "valid", "test")


def read_rows(split):
    return [json.loads(line) for line in (SAMPLE / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(BASE_MODEL, local_files_only=True)


def test_committed_files_are_what_the_generator_writes(tmp_path):
    script = shutil.copy(SAMPLE / "generate.py", tmp_path)
    subprocess.run([sys.executable, script], check=True)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (SAMPLE / f"{split}.jsonl").read_bytes()


@pytest.mark.parametrize(("split", "rows"), [("train", 300), ("valid", 80), ("test", 80)])
def test_each_row_is_one_prompt_and_one_answer(split, rows):
    conversations = read_rows(split)
    assert len(conversations) == rows
    for conversation in conversations:
        assert list(conversation) == ["messages"]
        assert [message["role"] for message in conversation["messages"]] == ["system", "user", "assistant"]
        assert all(message["content"].strip() for message in conversation["messages"])


def test_no_sentence_occurs_twice_within_or_between_splits():
    sentences = [row["messages"][1]["content"] for split in SPLITS for row in read_rows(split)]
    assert len(sentences) == len(set(sentences))


def test_the_wordings_of_a_training_event_share_their_answer():
    answers = [row["messages"][2]["content"] for row in read_rows("train")]
    assert len(set(answers)) == len(answers) // 3


def test_answers_are_denser_than_their_sentences():
    for split in SPLITS:
        for row in read_rows(split):
            _, user, assistant = (message["content"] for message in row["messages"])
            assert len(assistant) < len(user)


def test_prompts_and_answers_are_short_and_the_prompt_is_a_prefix(tokenizer):
    for split in SPLITS:
        for row in read_rows(split):
            messages = row["messages"]
            prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True).input_ids
            whole = tokenizer.apply_chat_template(messages).input_ids
            assert whole[: len(prompt)] == prompt
            assert 20 <= len(prompt) <= 80
            assert 10 <= len(whole) - len(prompt) <= 50
