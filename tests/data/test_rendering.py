from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.rendering import encode, prompt_tokens, render
from tinker_utils.data.streaming import describe
from tinker_utils.data.tokenizers import load_tokenizer
from tinker_utils.errors import RenderingError


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(TrainingConfig(service="local", model="tiny"))


def chat(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple({"role": role, "content": content} for role, content in turns), "train.jsonl:7")


ONE = chat(("system", "Be brief."), ("user", "Two plus two?"), ("assistant", "four"))
TWO = chat(("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"), ("user", "unanswered"))

ONE_PROMPT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwo plus two?<|im_end|>\n<|im_start|>assistant\n"
)


def weighted_text(example, tokenizer) -> str:
    return tokenizer.decode(example.target_tokens[example.weights > 0])


def test_the_completion_is_what_the_template_adds_to_the_prompt(tokenizer):
    (example,) = render([ONE], tokenizer, 512).examples
    assert tokenizer.decode(example.tokens) == ONE_PROMPT + "four<|im_end|>\n"
    assert weighted_text(example, tokenizer) == "four<|im_end|>\n"
    prompt = tokenizer.encode(ONE_PROMPT, add_special_tokens=False)
    assert example.tokens[: len(prompt)].tolist() == prompt == prompt_tokens(ONE.messages[:2], tokenizer)
    # The first completion token is the target of the prompt's last token.
    assert example.weights.tolist() == [0.0] * (len(prompt) - 1) + [1.0] * (len(example.tokens) - len(prompt))


def test_the_last_assistant_message_is_trained_on_and_what_follows_it_is_left_out(tokenizer):
    (example,) = render([TWO], tokenizer, 512).examples
    assert weighted_text(example, tokenizer) == "d<|im_end|>\n"
    assert "unanswered" not in tokenizer.decode(example.tokens)


def test_all_assistant_messages_can_be_trained_on(tokenizer):
    (example,) = render([TWO], tokenizer, 512, "all_assistant").examples
    assert weighted_text(example, tokenizer) == "b<|im_end|>\nd<|im_end|>\n"


def test_long_examples_are_cut_and_those_that_lose_their_completion_are_skipped(tokenizer):
    prompt = len(tokenizer.encode(ONE_PROMPT, add_special_tokens=False))
    whole = render([ONE], tokenizer, 512).examples[0]
    rendered = render([ONE, ONE], tokenizer, prompt + 1)
    assert (rendered.cut, rendered.skipped, len(rendered.examples)) == (2, 0, 2)
    assert rendered.examples[0].tokens.tolist() == whole.tokens[: prompt + 1].tolist()
    assert rendered.examples[0].completion_tokens == 1
    gone = render([ONE, TWO], tokenizer, prompt)
    assert (gone.cut, gone.skipped, len(gone.examples)) == (1, 1, 1)
    assert "cut at 27 tokens: 1;" in describe(gone, "train", prompt)
    assert "skipped, because no completion token is left: 1" in describe(gone, "train", prompt)


def test_a_conversation_without_an_answer_is_skipped_and_counted(tokenizer):
    rendered = render([chat(("user", "hello")), ONE], tokenizer, 512)
    assert (rendered.skipped, len(rendered.examples)) == (1, 1)


def test_an_answer_to_nothing_is_skipped_and_counted(tokenizer):
    opening = chat(("assistant", "hello"), ("user", "hi"))
    rendered = render([opening, ONE], tokenizer, 512)
    assert (rendered.skipped, len(rendered.examples)) == (1, 1)
    both = chat(("assistant", "hello"), ("user", "hi"), ("assistant", "well"))
    (example,) = render([both], tokenizer, 512, "all_assistant").examples
    assert weighted_text(example, tokenizer) == "well<|im_end|>\n"


def test_an_empty_answer_still_ends_the_turn(tokenizer):
    (example,) = render([chat(("user", "x"), ("assistant", ""))], tokenizer, 512).examples
    assert weighted_text(example, tokenizer) == "<|im_end|>\n"


@pytest.mark.parametrize(
    "text", ["naïve café 漢字 🜂", "\n\nstarts with newlines", " \t", "a" * 500, "<|im_end|>", "\x00\x7f"]
)
def test_any_text_renders_to_itself_and_to_the_prompts_own_tokens(tokenizer, text):
    conversation = chat(("user", text), ("assistant", text))
    (example,) = render([conversation], tokenizer, 4096).examples
    prompt = prompt_tokens(conversation.messages[:1], tokenizer)
    assert example.tokens[: len(prompt)].tolist() == prompt
    assert tokenizer.decode(example.tokens[len(prompt) :]) == f"{text}<|im_end|>\n"
    assert example.weights[: len(prompt) - 1].sum() == 0
    assert example.weights[len(prompt) - 1 :].all()


class Template:
    """The packaged tokenizer with another chat template."""

    def __init__(self, tokenizer, template: str, is_fast: bool = True) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.is_fast = is_fast

    def __call__(self, text, **options):
        return self._tokenizer(text, **options)

    def apply_chat_template(self, conversation, **options):
        return self._tokenizer.apply_chat_template(conversation, chat_template=self._template, **options)


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer):
    counting = Template(tokenizer, "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(RenderingError, match=r"train.jsonl:7: .*message 3 .*cannot be told apart"):
        render([ONE], counting, 512)


def test_a_template_that_rewrites_earlier_answers_can_train_on_the_last_one_only(tokenizer):
    forgetful = Template(
        tokenizer,
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}[...]"
        "{% else %}{{ m.role[0] }}:{{ m.content }};{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}",
    )
    assert weighted_text(render([TWO], forgetful, 512).examples[0], tokenizer) == "d;"
    with pytest.raises(RenderingError, match="set training.train_on to last_assistant"):
        render([TWO], forgetful, 512, "all_assistant")


def test_a_template_that_raises_is_told_in_a_sentence(tokenizer):
    picky = Template(tokenizer, "{{ raise_exception('no system role') }}")
    with pytest.raises(RenderingError, match="refused 3 messages .*no system role"):
        render([ONE], picky, 512)


def test_a_token_across_the_edge_is_split_as_sampling_will_see_it(tokenizer):
    """Without a mark between prompt and answer the tokenizer would join `t` and `h`; the prompt alone ends in `t`."""
    joined = Template(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    conversation = chat(("user", "wi"), ("assistant", "th the"))
    assert len(tokenizer.encode("with the")) < len(tokenizer.encode("wi")) + len(tokenizer.encode("th the"))
    (example,) = render([conversation], joined, 512).examples
    expected = tokenizer.encode("wi") + tokenizer.encode("th the")
    assert example.tokens.tolist() == expected
    assert weighted_text(example, tokenizer) == "th the"


def test_a_tokenizer_without_offsets_gives_the_same(tokenizer):
    template = tokenizer.chat_template
    fast = render([ONE, TWO], Template(tokenizer, template), 512).examples
    slow = render([ONE, TWO], Template(tokenizer, template, is_fast=False), 512).examples
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.weights, b.weights)


PIECES = st.sampled_from(
    ["a", "the ", " ", "\n", "\n\n", "é", "漢", "🜂", "👩‍🚀", "<|im_end|>", "<|im_start|>", "1", ".", "\t"]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)
CHATS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), min_size=1, max_size=6)
# Templates with and without marks around an answer: in the latter a token may reach over its edges.
TEMPLATES = {
    "marked": None,
    "bare": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "newline": "{% for m in messages %}{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}",
}


def by_all_offsets(conversation, tokenizer, train_on):
    """(tokens, completion mask) from the place of every token in the text; None where one reaches over an edge."""
    messages = list(conversation.messages)
    trained = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"]
    if train_on == "last_assistant":
        trained = trained[-1:]
    text = tokenizer.apply_chat_template(messages[: trained[-1] + 1], tokenize=False)
    encoded = tokenizer([text], add_special_tokens=False, return_offsets_mapping=True)
    (offsets,) = encoded["offset_mapping"]
    mask = [False] * len(offsets)
    for i in trained:
        start = len(tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True))
        end = len(tokenizer.apply_chat_template(messages[: i + 1], tokenize=False))
        if any(a < edge < b for a, b in offsets for edge in (start, end)):
            return None
        mask = [m or start <= a < b <= end for m, (a, b) in zip(mask, offsets, strict=True)]
    return encoded["input_ids"][0], mask


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("train_on", ["last_assistant", "all_assistant"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chats=st.lists(CHATS, min_size=1, max_size=4))
@example(chats=[[("system", ""), ("assistant", "")]])  # a template without words of its own makes no token of it
def test_many_conversations_at_once_are_what_the_place_of_every_token_says(tokenizer, template, train_on, chats):
    with_template = Template(tokenizer, template or tokenizer.chat_template)
    conversations = [chat(*turns) for turns in chats]
    for conversation, encoded in zip(conversations, encode(conversations, with_template, train_on), strict=True):
        if not conversation.last_assistant():
            assert encoded is None
            continue
        expected = by_all_offsets(conversation, with_template, train_on)
        if expected is not None:
            assert (encoded.tokens.tolist(), encoded.completion.tolist()) == expected
        else:  # a token would join the two: they are encoded apart, and the text stays what it was
            text = with_template.apply_chat_template(
                list(conversation.messages[: conversation.last_assistant() + 1]), tokenize=False
            )
            assert tokenizer.decode(encoded.tokens) == text


def test_the_conversation_that_a_template_refuses_is_named_among_many(tokenizer):
    strict = Template(
        tokenizer,
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}{% endfor %}",
    )
    good = chat(("user", "x"), ("assistant", "y"))
    bad = Conversation(chat(("user", "no"), ("assistant", "y")).messages, "train.jsonl:9")
    with pytest.raises(RenderingError, match=r"^train.jsonl:9: the chat template refused 2 messages .*not that"):
        render([good, bad, good], strict, 512)
