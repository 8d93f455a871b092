"""A chat template as this project uses it, beside what transformers itself makes of it."""

from __future__ import annotations

import datetime
import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.formats import chat_messages
from tinker_utils.data.template import ChatTemplate, special_tokens
from tinker_utils.data.template_renderer import TemplateRenderer
from tinker_utils.data.tokenizers import load_tokenizer

START = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TrainingConfig(service="local", model="tiny"))


def chatml(body: str, prompt: str = START) -> str:
    """Return a template of ChatML whose messages have this body."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + body + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}" + prompt + "{% endif %}"
    )


def chat(*turns, tools=(), **line):
    return Conversation(tuple({"role": role, "content": text} for role, text in turns), "train.jsonl:1", tools)


def answer_of(template: ChatTemplate, conversation: Conversation, train_on="last_assistant") -> str:
    (rendered,) = TemplateRenderer(template, train_on).encode([conversation])
    assert not rendered.problem
    return "|".join(template.tokenizer.decode(each.tokens[each.completion]) for each in rendered.encoded)


ASKED = chat(("user", "2+2?"), ("assistant", "4"))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("<|im_end|>\n", "4<|im_end|>"),
        ("<|im_end|><|endoftext|>\n", "4<|im_end|><|endoftext|>"),
        ("<|im_end|>\n<|endoftext|>", "4<|im_end|>"),
        ("\n", "4\n"),
    ],
)
def test_an_answer_ends_with_its_end_of_turn_token(tokenizer, end, expected):
    body = "{% for m in messages %}{{ m.role }}:{{ m.content }}" + end + "{% endfor %}"
    template = ChatTemplate(tokenizer, body + "{% if add_generation_prompt %}assistant:{% endif %}")
    assert answer_of(template, ASKED) == expected


def test_where_the_next_turn_ends_an_answer_its_token_is_in_the_loss(tokenizer):
    """As in GLM's: the model stops by writing who speaks next."""
    text = "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|endoftext|>' }}{{ m.content }}"
    template = ChatTemplate(tokenizer, text + "{% endfor %}" + "{% if add_generation_prompt %}<|endoftext|>{% endif %}")
    assert answer_of(template, ASKED) == "4<|im_start|>"
    (rendered,) = TemplateRenderer(template).encode([ASKED])
    assert not rendered.signs


@pytest.mark.parametrize(
    ("body", "prompt", "expected"),
    [
        # The prompt opens reasoning, and an answer without any closes it, as the template would.
        ("{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}", START + "<think>\n", "</think>4<|im_end|>"),
        ("{{ m.content }}", START + "<think>\n", "\n</think>\n\n4<|im_end|>"),
        (
            "{% if m.reasoning_content %}[thought\n{{ m.reasoning_content }}\n[/thought]{% endif %}{{ m.content }}",
            START + "[thought\n",
            "\n[/thought]4<|im_end|>",
        ),
    ],
)
def test_an_answer_goes_on_from_what_its_prompt_opens(tokenizer, body, prompt, expected):
    template = ChatTemplate(tokenizer, chatml(body, prompt))
    assert answer_of(template, ASKED) == expected
    (rendered,) = TemplateRenderer(template).encode([ASKED])
    assert rendered.signs == {"opened"}
    tokens = rendered.encoded[0].tokens
    given = tokenizer.apply_chat_template(
        list(ASKED.messages[:1]), chat_template=template.text, tokenize=False, add_generation_prompt=True
    )
    given = tokenizer.encode(given, add_special_tokens=False)
    assert tokens[: len(given)].tolist() == given


def test_arguments_of_the_template_are_handed_to_it(tokenizer):
    body = "{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}"
    opens = START + "{{ '<think></think>' if enable_thinking is false else '<think>\n' }}"
    template = ChatTemplate(tokenizer, chatml(body, opens), {"enable_thinking": False})
    assert answer_of(template, ASKED) == "4<|im_end|>"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("{{ c.function.arguments | tojson }}", '{"city": "Rome"}'),  # takes an object: a text would be quoted
        ("{{ '' + c.function.arguments }}", '{"city":"Rome"}'),  # takes a text
        ("{% for k, v in c.function.arguments | items %}{{ k }}={{ v }}{% endfor %}", "city=Rome"),
        ("{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}", None),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
def test_arguments_of_a_call_are_given_as_the_template_takes_them(tokenizer, written, expected, as_text):
    arguments = '{"city":"Rome"}' if as_text else {"city": "Rome"}
    line = {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
        ]
    }
    body = "{{ m.content }}{% for c in m.tool_calls or [] %}" + written + "{% endfor %}"
    if expected is None:
        expected = '{"city":"Rome"}' if as_text else '{"city": "Rome"}'
    elif written.startswith("{{ ''") and not as_text:
        expected = '{"city": "Rome"}'
    template = ChatTemplate(tokenizer, chatml(body))
    assert answer_of(template, chat_messages(line, "train.jsonl:1")) == f"{expected}<|im_end|>"


def test_a_template_that_takes_parts_alone_is_given_parts(tokenizer):
    body = "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    assert answer_of(ChatTemplate(tokenizer, chatml(body)), ASKED) == "4<|im_end|>"


def test_each_conversation_has_its_own_tools(tokenizer):
    template = ChatTemplate(tokenizer, "{{ tools | tojson if tools else 'none' }}" + chatml("{{ m.content }}"))
    first, second = {"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "b"}}
    messages = [{"role": "user", "content": "?"}]
    texts = template.texts([(messages, (first,)), (messages, ()), (messages, (second,)), (messages, (first,))], True)
    expected = [
        tokenizer.apply_chat_template(
            messages, chat_template=template.text, tools=tools, tokenize=False, add_generation_prompt=True
        )
        for tools in ([first], None, [second], [first])
    ]
    assert texts == expected


def test_todays_date_is_the_day_that_the_template_is_told(tokenizer):
    text = "Today is {{ strftime_now('%d %b %Y') }}. " + chatml("{{ m.content }}")
    old, new = (ChatTemplate(tokenizer, text, date=datetime.date(2024, month, 3)) for month in (7, 8))
    for template, expected in ((old, "03 Jul 2024"), (new, "03 Aug 2024"), (old, "03 Jul 2024")):
        assert template.text_of(ASKED.messages).startswith(f"Today is {expected}. ")
    assert old.identity["date in the template"] == "2024-07-03"
    assert ChatTemplate(tokenizer, date=datetime.date(2024, 7, 3)).identity["date in the template"] == "none"


PIECES = st.sampled_from(["a", "<|im_end|>", "<|im_start|>", " ", "\n", "the ", "é"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(PIECES, max_size=6).map("".join), said=st.lists(PIECES, max_size=6).map("".join))
def test_special_tokens_that_are_typed_can_be_text_as_transformers_makes_it(tokenizer, asked, said):
    conversation = chat(("user", asked), ("assistant", said))
    (rendered,) = TemplateRenderer(ChatTemplate(tokenizer, escape_special=True)).encode([conversation])
    (encoded,) = rendered.encoded
    prompt = tokenizer.apply_chat_template(
        list(conversation.messages[:1]), add_generation_prompt=True, sanitize_control_tokens=True
    )["input_ids"]
    assert encoded.tokens[: len(prompt)].tolist() == prompt
    assert tokenizer.decode(encoded.tokens[encoded.completion]) == f"{said}<|im_end|>"
    ids = tokenizer.convert_tokens_to_ids(special_tokens(tokenizer))
    assert sum(token in ids for token in encoded.tokens.tolist()) == 4, "those that the template writes"


def test_tokens_that_models_write_themselves_are_tokens(tokenizer):
    assert special_tokens(tokenizer) == ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]

    added = {0: _Added("<think>"), 1: _Added("</tool_call>"), 2: _Added("<|x|>"), 3: _Added("y", False)}
    other = SimpleNamespace(eos_token="<|im_end|>", added_tokens_decoder=added)
    assert special_tokens(other) == ["<|im_end|>", "<|x|>"]


class _Added:
    def __init__(self, content: str, special: bool = True) -> None:
        self.content = content
        self.special = special


def test_what_decides_the_text_is_named_in_short(tokenizer):
    own, other = ChatTemplate(tokenizer).identity, ChatTemplate(tokenizer, "x", {"a": 1}, escape_special=True).identity
    assert own["chat template"] != other["chat template"] and len(own["chat template"]) == 12
    assert json.loads(other["template arguments"]) == {"a": 1}
    assert other["special tokens in messages"] == "text"
