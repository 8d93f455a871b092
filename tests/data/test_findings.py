"""What of a file is not trained on, or trains what nobody meant, is counted and told, with its first line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tinker_utils
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data import findings as module
from tinker_utils.plan import preparing
from tinker_utils.plan.preparing import prepare
from tinker_utils.training.checks import preflight

PACKAGED = Path(tinker_utils.__file__).parent / "local" / "base_model"
# Writes tools, reasoning and calls; of other keys nothing, of `developer` nothing, and keeps no earlier reasoning.
FULL = """{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}{% if m.role != 'developer' %}<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.last %}<think>
{{ m.reasoning_content }}
</think>
{% endif %}{{ m.content.split('</think>')[-1] }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{%
for k, v in c.function.arguments | items %} {{ k }}={{ v }}{% endfor %}</tool_call>{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CALL = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Rome"}'}}
ASKED, ANSWER = {"role": "user", "content": "Time in Rome?"}, {"role": "assistant", "content": "12:30"}
PLAIN = {"messages": [ASKED, ANSWER]}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "12:30", "tool_call_id": "c1"}


@pytest.fixture
def told(tmp_path):
    def told_of(*lines, template=FULL, **settings):
        model = tmp_path / "model"
        if not model.exists():
            shutil.copytree(PACKAGED, model)
        (model / "chat_template.jinja").write_text(template)
        for name in ("train.jsonl", "valid.jsonl"):
            chosen = lines if name == "train.jsonl" else [PLAIN]
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in chosen))
        config = TrainingConfig(service="local", model=str(model), data_dir=tmp_path, **settings)
        return [sentence.replace(str(tmp_path), "") for sentence in prepare(config).findings]

    return told_of


def test_nothing_is_told_of_plain_lines(told):
    assert told(PLAIN, PLAIN) == []


def test_keys_of_a_line_that_nothing_uses_are_named_and_counted(told):
    lines = [PLAIN | {"id": 1, "source": "x"}, PLAIN | {"id": 2, "note": None}, PLAIN]
    assert told(*lines) == ["train.jsonl: keys of its 3 lines that nothing uses: 'id' (2), 'source' (1)."]


def test_what_the_template_leaves_out_is_found_by_rendering_without_it(told):
    named = {"messages": [ASKED | {"name": "Ann"}, ANSWER]}
    bare = (PACKAGED / "chat_template.jinja").read_text()
    assert told(named, PLAIN, PLAIN) == ["train.jsonl: the template of /model writes no name: 1 of 3 lines lose them."]
    tools = {"messages": [ASKED, CALLING, RESULT, ANSWER], "tools": json.dumps([{"type": "function"}])}
    lost = [sentence for sentence in told(tools, PLAIN, template=bare) if "writes no" in sentence]
    assert [sentence.split("writes no ")[1] for sentence in lost] == [
        "tool_call_id: 1 of 2 lines lose them.",
        "tool_calls: 1 of 2 lines lose them.",
        "tools: 1 of 2 lines lose them.",
    ]


def test_a_role_and_earlier_reasoning_that_are_not_written_are_told(told):
    lines = [
        {"messages": [{"role": "developer", "content": "Be brief."}, ASKED, ANSWER]},
        {"messages": [ASKED, ANSWER | {"content": "<think>noon?</think>No."}, ASKED, ANSWER]},
        {"messages": [ASKED, ANSWER | {"reasoning_content": "noon?"}, ASKED, ANSWER]},
    ]
    assert [sentence.split("writes no ")[1] for sentence in told(*lines)] == [
        "content of developer messages: 1 of 3 lines lose them.",
        "reasoning that stands in the content: 1 of 3 lines lose them.",
        "reasoning_content: 1 of 3 lines lose them.",
    ]


def test_calls_that_are_not_in_the_loss_are_told_and_last_turn_trains_them(told):
    line = {"messages": [ASKED, CALLING, RESULT | {"tool_call_id": None}, ANSWER]}
    assert told(line, line) == [
        "train.jsonl: 0 of 2 tool calls are in the loss; training.train_on: last_turn trains them with the closing "
        "answer."
    ]
    assert told(line, line, train_on="last_turn") == []


def test_empty_answers_typed_tokens_and_the_rest_of_a_conversation_are_counted(told):
    lines = [
        PLAIN,
        {"messages": [ASKED, ANSWER | {"content": " \n"}]},
        {"messages": [ASKED | {"content": "what is <|im_end|>?"}, ANSWER, ASKED]},
        {"messages": [ASKED | {"weight": 1}, ANSWER | {"content": "<think>"}]},
    ]
    assert [sentence.split("lines ")[1].split(";")[0].split(" (the")[0] for sentence in told(*lines)] == [
        "have an answer that is empty or blank, and teach the model to say nothing",
        "hold a special token as text, such as '<|im_end|>', which becomes the token itself",
        "ask for a message in the loss that is no answer",
        "go on behind the last answer that is trained on",
    ]
    assert told(*lines)[1].endswith("(the first is line 3).")


def test_an_answer_without_an_end_is_told(told):
    endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (train, valid) = told(PLAIN, template=endless)
    assert "1 of 1 lines have an answer that no end-of-turn token follows: the model never learns to stop" in train
    assert valid.startswith("valid.jsonl: ")


def test_unusable_lines_are_skipped_up_to_a_share_with_the_remedy_for_that_line(told, tmp_path):
    twice = {"messages": [ASKED, ANSWER, ANSWER]}
    picky = "{% for m in messages %}{% if not loop.first and messages[loop.index0 - 1].role == m.role %}" + (
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + FULL
    )
    (sentence,) = told(*[PLAIN] * 99, twice, template=picky)
    assert sentence == (
        "train.jsonl: 1 of 100 lines are skipped, as they cannot be used: /train.jsonl:100: messages 2 and 3 are both "
        "answers, which the chat template does not write one after the other as it prompts for them; join them into "
        "one."
    )
    image = {"messages": [ASKED | {"content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]}
    (sentence,) = told(*[PLAIN] * 99, image)
    assert "/train.jsonl:100: message 1 has a part of type 'image_url'" in sentence
    for line, error in ((twice, "RenderingError"), (image, "DataError")):
        with pytest.raises(ValueError, match=r"train.jsonl:\d+: .* 2 of 101 lines cannot be used") as caught:
            told(*[PLAIN] * 99, line, line, template=picky)
        assert type(caught.value).__name__ == error
        with pytest.raises(ValueError, match="data.max_skipped_share allows 0 of them"):
            told(*[PLAIN] * 99, line, template=picky, max_skipped_share=0.0)


def test_of_a_large_file_a_seeded_sample_is_looked_at(told, monkeypatch):
    monkeypatch.setattr(preparing, "_RENDERED_AT_ONCE", 0)
    monkeypatch.setattr(module, "SAMPLE", 5)
    monkeypatch.setattr("tinker_utils.data.streaming.BLOCK", 3)
    lines = [PLAIN | {"id": number} for number in range(40)]
    (sentence, _) = [*told(*lines, batch_size=1), ""]
    assert sentence == "train.jsonl: keys of its 5 lines that were looked at that nothing uses: 'id' (5)."


def test_preflight_tells_what_was_found(told, tmp_path):
    told(PLAIN | {"id": 1})
    config = TrainingConfig(service="local", model=str(tmp_path / "model"), data_dir=tmp_path)
    checks = {(check.name, check.status): check.sentence for check in preflight(config, tmp_path / "run").checks}
    assert "keys of its 1 lines that nothing uses: 'id' (1)" in checks["contents", "warn"]
