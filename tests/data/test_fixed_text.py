"""What a template was seen to write around the contents of some messages is what it writes around those of others."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data import fixed_text
from tinker_utils.data.chat import Conversation
from tinker_utils.data.template import texts_and_spans
from tinker_utils.data.tokenizers import load_tokenizer

LOOP = "{{% for m in messages %}}{}{{% endfor %}}{{% if add_generation_prompt %}}assistant: {{% endif %}}"
# As those of models that think before they answer do it.
THINKS = """{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for m in messages[::-1] %}
    {%- if ns.open and m.role == "user" and m.content is string and not(m.content.startswith('<tool_response>')
        and m.content.endswith('</tool_response>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- set thought = '' %}
    {%- if m.role == "assistant" and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == "assistant" and loop.index0 > ns.last %}
        {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
    {%- else %}
        {{- content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
SEEN_THROUGH = {
    "packaged": None,
    "thinks": THINKS,
    "trims": LOOP.format("{{ m['role'] + ': ' + m['content'] | trim }}\n"),
    "concatenates": LOOP.format(
        "{% set x = m.role + ': ' + m.content %}{% if loop.first %}{% set x = '{s}' + x %}{% endif %}{{ x }}\n"
    ),
    "asks for empty": LOOP.format("{{ m.role }}: {% if m.content %}{{ m.content }}{% else %}nothing{% endif %}\n"),
    "compares": LOOP.format("{{ m.role }}: {% if m.content == 'a' or '{' != m.content %}!{% endif %}{{ m.content }}\n"),
    "replaces": LOOP.format("{{ m.role }}: {{ m.content.replace('the ', '{}') }}\n"),
    "leaves out": LOOP.format("{{ m.role }}: {% if m.role != 'system' %}{{ m.content }}{% endif %}\n"),
    "says twice": LOOP.format("{{ m.role }}: {{ m.content }}{{ m.content }}\n"),
}
LOOKS_UNSEEN = {
    "copies": LOOP.format("{{ m.role }}: {{ (m.content ~ '') | trim }}\n"),
    "macro": "{% macro f(x) %}{{ x }}{% endmacro %}" + LOOP.format("{{ m.role }}: {{ f(m.content) | trim }}\n"),
    "set block": LOOP.format("{% set x %}{{ m.content }}{% endset %}{{ m.role }}: {{ x | trim }}\n"),
    "formats": LOOP.format("{{ m.role }}: {{ ('%s' % m.content) | trim }}\n"),
    "joins": LOOP.format("{{ m.role }}: {{ [m.content] | join | trim }}\n"),
    "found in": LOOP.format("{{ m.role }}: {% if m.content in 'banana' %}!{% endif %}{{ m.content }}\n"),
    "argument": LOOP.format("{{ m.role }}: {% if 'banana'.startswith(m.content) %}!{% endif %}{{ m.content }}\n"),
    "braces": LOOP.format("{{ m.role }}: {% if {'a': {'b': 1}}['a'] and m.content in 'banana' %}!{% endif %}\n"),
}
OTHERWISE = {
    "upper case": LOOP.format("{{ m.role }}: {{ m.content.upper() }}\n"),
    "counts": LOOP.format("{{ m.role }}: {{ m.content | length }} {{ m.content }}\n"),
    "slices": LOOP.format("{{ m.role }}: {{ m.content[:2] }}\n"),
    "characters": LOOP.format("{{ m.role }}: {% for c in m.content %}{{ c }},{% endfor %}\n"),
    "JSON": LOOP.format("{{ m.role }}: {{ m.content | tojson }}\n"),
    "as Python": LOOP.format("{{ m.role }}: {{ m }}\n"),
    "sequence": LOOP.format("{{ m.role }}: {% if m.content is sequence %}{{ m.content }}{% endif %}\n"),
    "one another": LOOP.format("{{ m.role }}: {% if m.content == messages[0].content %}!{% endif %}{{ m.content }}\n"),
}
TEMPLATES = SEEN_THROUGH | LOOKS_UNSEEN | OTHERWISE

PIECES = ["a", "the ", " ", "\n", "{", "}}", "{0}", "É", "<", "'", "</think>", "<think>", "<tool_response>", "🜂"]
TEXTS = st.lists(st.sampled_from([*PIECES, "</tool_response>"]), max_size=4).map("".join)
ROLES = [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user", "assistant")]
CHATS = st.sampled_from(ROLES).flatmap(
    lambda roles: st.tuples(*(TEXTS.map(lambda text, role=role: {"role": role, "content": text}) for role in roles))
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TrainingConfig(service="local", model="tiny"))


class Counting:
    """A tokenizer with another template, that counts the conversations which it itself applies it to."""

    is_fast = True

    def __init__(self, tokenizer, template: str | None) -> None:
        self.applied = 0
        self._tokenizer = tokenizer
        self._packaged = tokenizer.chat_template
        self.direct = tokenizer.direct
        tokenizer.chat_template = template or self._packaged

    def __call__(self, text, **options):
        return self._tokenizer(text, **options)

    def apply_chat_template(self, conversation, **options):
        self.applied += len(conversation) if isinstance(conversation[0], list) else 1
        return self._tokenizer.apply_chat_template(conversation, **options)

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokenizer.chat_template = self._packaged


def one_by_one(conversation, tokenizer, train_on):
    """Text and spans, from one call of the tokenizer's own for each."""
    messages = list(conversation.messages)
    turns = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"]
    turns = turns if train_on == "all_assistant" else turns[-1:]
    answered = [tokenizer.apply_chat_template(messages[: i + 1], tokenize=False) for i in turns]
    prompts = [tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True) for i in turns]
    return answered[-1], [(len(a), len(b)) for a, b in zip(prompts, answered, strict=True)]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chats=st.lists(CHATS, min_size=1, max_size=12), common=st.sampled_from([1, 2]))
def test_texts_are_those_of_the_tokenizer_itself(tokenizer, name, chats, common):
    # A template that takes back what it wrote of an answer lets only the last one be trained on.
    train_on = "last_assistant" if name == "thinks" else "all_assistant"
    conversations = [Conversation(messages, "train.jsonl:1") for messages in chats]
    with Counting(tokenizer, TEMPLATES[name]) as counting, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixed_text, "_COMMON", common)
        expected = [one_by_one(each, tokenizer, train_on) for each in conversations]
        assert texts_and_spans(conversations, counting, train_on) == expected


def plain(number: int, **more: object) -> Conversation:
    user, assistant = {"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}
    return Conversation((user | more, assistant), "train.jsonl:1")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_is_seen_through_is_applied_to_few_of_many(tokenizer, name):
    with Counting(tokenizer, TEMPLATES[name]) as counting:
        texts_and_spans([plain(i) for i in range(100)], counting, "last_assistant")
    if name in SEEN_THROUGH:
        assert counting.applied == 2 * fixed_text._COMMON
    else:
        assert counting.applied >= 200


def test_messages_with_further_fields_are_left_to_the_tokenizer(tokenizer):
    named = LOOP.format("{{ m.name or m.role }}: {{ m.content }}\n")
    conversations = [plain(i, name=f"n{i}") if i % 2 else plain(i) for i in range(20)]
    with Counting(tokenizer, named) as counting:
        expected = [one_by_one(each, tokenizer, "last_assistant") for each in conversations]
        assert texts_and_spans(conversations, counting, "last_assistant") == expected


def test_the_order_of_a_messages_fields_is_seen(tokenizer):
    fields = LOOP.format("{{ m.role }}: {% for name in m %}{{ m[name] }}{% endfor %}\n")
    conversations = [plain(i) for i in range(20)]
    turned = [Conversation(tuple({k: m[k] for k in reversed(m)} for m in c.messages), c.source) for c in conversations]
    with Counting(tokenizer, fields) as counting:
        expected = [one_by_one(each, tokenizer, "last_assistant") for each in conversations + turned]
        assert texts_and_spans(conversations + turned, counting, "last_assistant") == expected


@pytest.mark.parametrize("name", LOOKS_UNSEEN)
def test_code_that_could_look_unseen_is_not_run_at_all(name):
    assert not fixed_text._is_seen_through(LOOKS_UNSEEN[name])
