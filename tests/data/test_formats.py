"""Rows of every format become the conversations that they mean; what is none of them is refused by what it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

import tinker_utils
from tinker_utils.config.loading import load_config_from_yaml
from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.files import ChatIndex
from tinker_utils.data.formats.messages import chat_messages
from tinker_utils.data.formats.reader import RowReader
from tinker_utils.data.renderers import as_renderer
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import ConfigError, DataError
from tinker_utils.plan.preparing import prepare
from tinker_utils.training.checks import preflight

PLACE = "train.jsonl:1"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
ANSWER = {"role": "assistant", "content": "4"}
PROMPT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
SAME = [
    ({"messages": [*ASKED, ANSWER]}, {}),
    ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2+2?"},
                        {"from": "GPT", "value": "4"}], "tools": ""}, {}),
    ({"conversations": [{"from": "user", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "system": "Be brief."}, {}),
    ({"conversations": [*ASKED, ANSWER]}, {}),
    ({"prompt": "2+2?", "completion": "4", "system": "Be brief."}, {}),
    ({"prompt": ASKED, "completion": [ANSWER]}, {}),
    ({"prompt": ASKED, "completion": "4", "messages": None}, {}),
    ({"instruction": "2+2?", "output": "4", "system": "Be brief.", "messages": "", "prompt": "", "completion": ""}, {}),
    ({"instruction": "2+2?", "input": "", "output": "4", "system": "Be brief.", "history": []}, {}),
    ({"question": "2+2?", "reply": "4", "preamble": "Be brief."},
     {"prompt": "question", "completion": "reply", "system": "preamble"}),
    ({"chat": [*ASKED, ANSWER]}, {"messages": "chat"}),
    ({"messages": json.dumps([*ASKED, ANSWER])}, {}),
    ({"prompt": json.dumps(ASKED), "completion": json.dumps([ANSWER])}, {}),
    ({"conversations": [*({"from": None, **each} for each in ASKED), {"from": "gpt", "value": "4", "role": None}]}, {}),
    ({"turns": json.dumps([{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]), "system": "Be brief."},
     {"conversations": "turns"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TrainingConfig(service="local", model="tiny"))


def read(row, columns=None, format="auto") -> Conversation:
    return RowReader(format, columns).conversation(row, PLACE)


def trained(conversation, renderer) -> tuple[str, str]:
    """What the model reads of a conversation, and what of it is in the loss."""
    ((encoded,), problem, _) = renderer.encode([conversation])[0]
    assert not problem
    return renderer.tokenizer.decode(encoded.tokens), renderer.tokenizer.decode(encoded.tokens[encoded.completion])


@pytest.mark.parametrize(("row", "columns"), SAME)
def test_the_same_row_in_any_format_trains_the_same_tokens(tokenizer, row, columns):
    conversation = read(row, columns)
    assert trained(conversation, as_renderer(tokenizer)) == (f"{PROMPT}4<|im_end|>", "4<|im_end|>")
    assert conversation.unused == ()


def test_the_input_stands_below_the_instruction_and_history_before_it():
    row = {"instruction": "Add.", "input": "1, 2", "output": "3", "history": [["Hi", "Hello"]], "text": "Below is …"}
    conversation = read(row)
    assert [(message["role"], message["content"]) for message in conversation.messages] == [
        ("user", "Hi"), ("assistant", "Hello"), ("user", "Add.\n1, 2"), ("assistant", "3"),
    ]  # fmt: skip
    assert (conversation.format, conversation.unused) == ("alpaca", ("text",))
    alone = read({"instruction": "", "input": "1, 2", "output": "3"})
    assert alone.messages[0]["content"] == "1, 2"


def test_calls_of_tools_in_turns_are_those_of_messages():
    call, tools = {"name": "clock", "arguments": {"city": "Rome"}}, [{"type": "function"}]
    turns = [("human", "Time?"), ("function_call", json.dumps(call)), ("observation", "12:30"), ("gpt", "Noon.")]
    conversation = read({"conversations": [{"from": a, "value": b} for a, b in turns], "tools": json.dumps(tools)})
    messages = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "12:30"},
        {"role": "assistant", "content": "Noon."},
    ]
    expected = chat_messages({"messages": messages, "tools": tools}, PLACE)
    assert (conversation.messages, conversation.tools) == (expected.messages, expected.tools)
    written = [message | {"tool_calls": json.dumps(message.get("tool_calls", []))} for message in messages]
    assert read({"messages": written}).messages[1] == expected.messages[1]


def test_what_stands_in_the_completion_is_trained_on_and_nothing_of_the_prompt():
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    row = {"prompt": prompt, "completion": [calling, {"role": "tool", "content": "1"}, ANSWER]}
    for train_on in ("last_assistant", "last_turn", "all_assistant"):
        assert read(row).answers(train_on) == [3, 5]
    row["completion"][2] = {**ANSWER, "train": False}
    assert read(row).answers("last_assistant") == [3]


def test_all_of_a_text_is_trained_on_and_it_ends(tokenizer):
    renderer = as_renderer(tokenizer)
    text = read({"text": "Once upon a time", "url": "x", "note": None})
    assert trained(text, renderer) == ("Once upon a time<|im_end|>",) * 2
    assert text.unused == ("url",)
    ended = read({"text": "Once<|im_end|>"})
    assert trained(ended, renderer)[0] == "Once<|im_end|>"
    # Beside a conversation, each keeps its place; the first token of a text is no target.
    mixed = renderer.encode([text, read(SAME[0][0]), text])
    lengths = [len(each.encoded[0].tokens) for each in mixed]
    assert lengths[0] == lengths[2] != lengths[1]
    assert mixed[0].encoded[0].example(512).completion_tokens == lengths[0] - 1
    assert mixed[0].encoded[0].example(4).completion_tokens == 3


def test_a_text_begins_as_the_tokenizer_begins_texts():
    own = load_tokenizer(TrainingConfig(service="local", model="tiny"))
    begin = own.convert_tokens_to_ids("<|im_start|>")
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)]
    )
    renderer = as_renderer(own)
    bare = own.encode("Once", add_special_tokens=False)
    for text in ("Once", "<|im_start|>Once"):  # one that is typed is not written twice
        (encoded,) = renderer.encode([read({"text": text})])[0].encoded
        assert encoded.tokens.tolist() == [begin, *bare, own.eos_token_id]
        # The first token of the text has something to be predicted from.
        assert encoded.example(512).weights.tolist() == [1.0] * (len(bare) + 1)
    (escaped,) = as_renderer(tokenizer_with_text_of_its_tokens(own)).encode([read({"text": "<|im_end|>"})])[0].encoded
    assert len(escaped.tokens) > 3
    assert own.decode(escaped.tokens) == "<|im_start|><|im_end|><|im_end|>"


def tokenizer_with_text_of_its_tokens(own):
    from tinker_utils.data.template import ChatTemplate
    from tinker_utils.data.template_renderer import TemplateRenderer

    return TemplateRenderer(ChatTemplate(own, escape_special=True))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (3, "received a number"),
        ({"question": "a", "answer": "b"}, r"received the keys \['answer', 'question'\].*data.columns"),
        ({"prompt": "a"}, r"received the keys \['prompt'\]"),
        ({"messages": None}, "`messages` is null"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "is preference data .*{completion: chosen}"),
        ({"prompt": ASKED, "chosen": [ANSWER], "rejected": [ANSWER]}, "{completion: chosen}"),
        ({"chosen": [*ASKED, ANSWER], "rejected": [*ASKED, ANSWER]}, "{messages: chosen}"),
        ({"chosen": json.dumps([*ASKED, ANSWER]), "rejected": "[]"}, "{messages: chosen}"),
        ({"prompt": "a", "completion": "b", "label": False}, "is preference data"),
        ({"prompt": "a", "completion": "b", "label": "True"}, "is preference data"),  # as CSV has it
        ({"prompt": 3, "completion": "b"}, "`prompt` is a number, neither a text nor a list of messages"),
        ({"prompt": "a", "completion": []}, "`completion` is an empty list"),
        ({"prompt": [{"role": "user", "content": 1}], "completion": "b"}, "message 1 has a content that is a number"),
        ({"conversations": "a"}, "`conversations` is a text, not a list of turns"),
        ({"conversations": []}, "`conversations` is an empty list"),
        ({"conversations": ["a"]}, "message 1 is a text"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "message 1 is from 'narrator', not one of"),
        ({"conversations": [{"from": "human"}]}, "message 1 has no content"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "message 1 calls a tool by a text that is"),
        ({"conversations": [{"from": "function_call", "value": "[3]"}]}, "message 1 calls a tool by 3"),
        ({"conversations": ASKED, "system": "Be long."}, "has a system prompt both"),
        ({"instruction": "a", "output": 4}, "`output` is a number, not a text"),
        ({"instruction": "a", "output": "b", "history": "c"}, "`history` is a text"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, r"`history` holds \['c'\]"),
        ({"instruction": "a", "output": "b", "history": [["c", 1]]}, "message 2 has a content that is a number"),
        ({"text": 3}, "`text` is a number"),
        ({"text": ""}, "`text` is empty"),
    ],
)
def test_what_cannot_be_used_is_said_by_what_was_received(row, words):
    with pytest.raises(DataError, match=f"^{PLACE}: .*{words}"):
        read(row)


def test_columns_and_formats_that_there_are_not_are_refused():
    with pytest.raises(ConfigError, match="data.columns: no format has 'promt' .did you mean prompt"):
        RowReader(columns={"promt": "question"})
    with pytest.raises(ConfigError, match="data.format: there is no 'alpca' .did you mean alpaca"):
        RowReader("alpca")
    with pytest.raises(ConfigError, match="data.columns: expected keys of a format"):
        TrainingConfig(columns={"prompt": "a", "completion": "a"})
    reader = RowReader(columns={"prompt": "question", "input": "context"})
    reader.conversation({"question": "a", "completion": "b"}, PLACE)
    with pytest.raises(ConfigError, match="data.columns: no row has 'context', which is named for input"):
        reader.check_columns()
    with pytest.raises(DataError, match=r"received the keys \['answer', 'q'\]; correct it, or .*'reply' is not among"):
        read({"q": "a", "answer": "b"}, {"prompt": "q", "completion": "reply"})
    with pytest.raises(DataError, match=r"has no `reply` .data.columns: completion., which data.format: prompt_comp"):
        read({"prompt": "a"}, {"completion": "reply"}, "prompt_completion")


def test_keys_that_columns_put_out_of_their_place_are_named(tmp_path):
    row = {"question": "2+2?", "prompt": "id 7", "completion": "4"}
    conversation = read(row, {"prompt": "question"})
    assert conversation.messages[0]["content"] == "2+2?"
    assert conversation.unused == ("prompt",)
    # A format that they name a key of counts before others that the row has the keys of.
    conversation = read(row | SAME[0][0], {"prompt": "question"})
    assert (conversation.format, conversation.unused) == ("prompt_completion", ("messages", "prompt"))
    # So are those beside messages, in rows that could be read more quickly without them.
    (tmp_path / "train.jsonl").write_text(json.dumps(SAME[0][0] | {"functions": [{"type": "function"}]}))
    reader = RowReader(columns={"tools": "functions"})
    (conversation,) = ChatIndex(tmp_path / "train.jsonl", reader=reader)
    reader.check_columns()
    assert (conversation.tools, conversation.unused) == (({"type": "function"},), ())
    # A format that is named is that of a row which would be taken for another by its keys.
    conversation = read({"instruction": "a", "output": "b", "text": "c", "messages": ASKED}, format="text")
    assert (conversation.messages[0]["content"], conversation.is_text) == ("c", True)
    assert conversation.unused == ("instruction", "messages", "output")
    assert read({"messages": "", "text": "c"}).is_text  # as a table has them


def examples_in(page: str) -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    return [block.partition("\n")[2] for block in text.split("```")[1::2]]


@pytest.fixture
def own_format(tmp_path):
    """The example of the documentation, as its reader would lay it out; returns the configuration's file."""
    module, settings, row = examples_in("extending.md")[:3]
    assert len(module.splitlines()) <= 20
    (tmp_path / "my_formats.py").write_text(module, encoding="utf-8")
    (tmp_path / "tickets.jsonl").write_text(row, encoding="utf-8")
    (tmp_path / "training.yaml").write_text(f"local:\n  service: local\n  model: tiny\n{settings}", encoding="utf-8")
    yield tmp_path / "training.yaml"
    sys.modules.pop("my_formats", None)


def test_a_format_of_ones_own_as_in_the_documentation(own_format):
    config = load_config_from_yaml(own_format, "local")
    plan = prepare(config)
    assert plan.chats[0].formats == {"my_formats:tickets": 1}
    (example,) = plan.train.examples
    assert plan.tokenizer.decode(example.tokens) == (
        "<|im_start|>user\nIt does not start.<|im_end|>\n<|im_start|>assistant\nPlug it in.<|im_end|>"
    )
    assert plan.findings == ("tickets.jsonl: keys of its 1 lines that nothing uses: 'id' (1).",)
    digest = hashlib.sha256((own_format.parent / "my_formats.py").read_bytes()).hexdigest()
    assert plan.rendering["format"] == f"my_formats:tickets {digest[:12]}"
    with (own_format.parent / "tickets.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"customer": "Hello?", "state": "open"}\n{"state": "solved", "agent": "Yes."}\n')
    with pytest.raises(DataError) as refused:
        prepare(config)
    assert "tickets.jsonl:2: is a ticket in the state 'open'" in str(refused.value)
    missing = own_format.parent / "tickets.jsonl"
    missing.write_text(missing.read_text().splitlines()[2])
    with pytest.raises(DataError, match="tickets.jsonl:1: has no 'customer', which my_formats:tickets needs"):
        prepare(config)


def test_a_script_in_the_place_of_a_format_does_not_end_the_process(own_format):
    (own_format.parent / "my_formats.py").write_text("import sys\nsys.exit(2)\n")
    with pytest.raises(ConfigError, match="my_formats:tickets cannot be imported .SystemExit: 2"):
        prepare(load_config_from_yaml(own_format, "local"))
    with pytest.raises(DataError, match="PLACE: SystemExit: .*; correct it"):
        RowReader("sys:exit").conversation({"text": "a"}, "PLACE")


def test_no_code_is_imported_because_a_run_directory_names_it(own_format, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    content = own_format.read_text()
    (run / "config.yaml").write_text(content.replace("local:", "run:", 1).replace("my_formats", "never_seen"))
    shutil.copy(own_format, run / "training.yaml")
    (run / "run.json").write_text("{}")
    (run / "configs").mkdir()
    shutil.copy(own_format, run / "configs")
    (run / "link.yaml").symlink_to(run / "training.yaml")
    shutil.move(run / "link.yaml", tmp_path)
    (run / "away.yaml").symlink_to(own_format)
    own = "local", "my_formats:tickets"
    named = (
        ("config.yaml", "run", "never_seen:tickets"),
        ("training.yaml", *own),
        ("configs/training.yaml", *own),
        ("../link.yaml", *own),
        ("away.yaml", *own),
    )
    for name, section, format in named:
        with pytest.raises(ConfigError, match=f"data.format: {format} is code") as refused:
            load_config_from_yaml(run / name, section)
        assert f'overrides={{"data.format": "{format}"}}' in str(refused.value)
        config = load_config_from_yaml(run / name, section, {"data.format": format})
        assert config.format == format
    with pytest.raises(ConfigError, match="data.format: never_seen:tickets cannot be imported .ModuleNotFoundError"):
        RowReader("never_seen:tickets")
    with pytest.raises(ConfigError, match="data.format: json:decoder is .*, not a function"):
        RowReader("json:decoder")


def test_what_a_function_raises_is_told_with_the_place(monkeypatch):
    monkeypatch.setattr(json, "raises", lambda row: row["text"].strip(), raising=False)
    with pytest.raises(DataError, match=f"^{PLACE}: AttributeError: 'NoneType' object has no attribute 'strip'"):
        RowReader("json:raises").conversation({"text": None}, PLACE)


@pytest.mark.parametrize("returned", [None, [], {"turns": []}])
def test_a_function_that_returns_no_row_is_said_to(monkeypatch, returned):
    monkeypatch.setattr(json, "returns", lambda row: returned, raising=False)
    with pytest.raises(DataError, match=f"^{PLACE}: became .* by json:returns, which has neither messages nor text"):
        RowReader("json:returns").conversation({}, PLACE)


def test_what_a_function_returns_is_of_jsons_own_types(monkeypatch):
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "n": (1,)})
    monkeypatch.setattr(
        json, "returns", lambda row: {"messages": turns, "tools": ({"type": "x"},), **row}, raising=False
    )
    read = RowReader("json:returns").conversation({3: 1, "z": 1}, PLACE)
    assert (read.messages[1]["n"], read.tools, read.unused) == ([1], ({"type": "x"},), ("3", "z"))
    for other, words in (
        ({1}, "TypeError: Object of type set"),
        (b"a", "TypeError: Object of type bytes"),
        ("\ud800", ""),
    ):
        with pytest.raises(DataError, match=f"^{PLACE}: {words}"):
            RowReader("json:returns").conversation({"other": other}, PLACE)


def test_the_report_says_which_format_was_recognized_and_shows_an_example(tmp_path):
    rows = [SAME[1][0], SAME[1][0], SAME[8][0]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "valid.jsonl").write_text(json.dumps({"text": "Once."}) + "\n")
    config = TrainingConfig(service="local", model="tiny", data_dir=tmp_path, samples_at_evaluation=1)
    plan = prepare(config)
    report = preflight(config, tmp_path / "run", preparation=plan)
    said = [(check.name, check.status, check.sentence) for check in report.checks]
    assert ("format", "warn", "train.jsonl: 2 rows in the format sharegpt and 1 rows in the format alpaca.") in said
    assert ("format", "ok", "valid.jsonl: 1 rows in the format text.") in said
    (example,) = [sentence for name, _, sentence in said if name == "example"]
    assert "2+2?" in example and example.endswith("is followed by '4<|im_end|>'.")
    assert plan.sampled == () and plan.sample_prompts == []
    assert "valid.jsonl: 1 of its first 1 lines have no prompt to sample an answer to." in plan.findings
    assert np.all(plan.valid.examples[0].weights == 1)


def test_what_the_settings_say_of_rows_is_part_of_what_identifies_a_run(tmp_path, monkeypatch):
    rows = [{"question": "a", "long": "b " * 40, "short": "b"}] * 8
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("tinker_utils.plan.preparing._RENDERED_AT_ONCE", 0)  # as a large file
    config = TrainingConfig(service="local", model="tiny", data_dir=tmp_path)
    plans = [
        prepare(config.with_overrides({"data.columns": {"prompt": "question", "completion": name}}))
        for name in ("long", "short", "short")
    ]
    assert plans[0].data_digest != plans[1].data_digest == plans[2].data_digest
    assert plans[1].rendering["columns"] == "completion: short, prompt: question"


def test_packaged_names():
    assert tinker_utils.data.formats.RowReader is RowReader
