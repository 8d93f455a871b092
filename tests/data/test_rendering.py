from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tinker_utils.config.settings import TrainingConfig
from tinker_utils.data.chat import Conversation
from tinker_utils.data.renderers import as_renderer, prompt_tokens, render
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
    assert tokenizer.decode(example.tokens) == ONE_PROMPT + "four<|im_end|>"
    assert weighted_text(example, tokenizer) == "four<|im_end|>"
    prompt = tokenizer.encode(ONE_PROMPT, add_special_tokens=False)
    assert example.tokens[: len(prompt)].tolist() == prompt == prompt_tokens(ONE.messages[:2], tokenizer)
    # The first completion token is the target of the prompt's last token.
    assert example.weights.tolist() == [0.0] * (len(prompt) - 1) + [1.0] * (len(example.tokens) - len(prompt))


def test_the_last_assistant_message_is_trained_on_and_what_follows_it_is_left_out(tokenizer):
    (example,) = render([TWO], tokenizer, 512).examples
    assert weighted_text(example, tokenizer) == "d<|im_end|>"
    assert "unanswered" not in tokenizer.decode(example.tokens)


def test_all_assistant_messages_can_be_trained_on(tokenizer):
    (example,) = render([TWO], tokenizer, 512, "all_assistant").examples
    assert weighted_text(example, tokenizer) == "b<|im_end|>d<|im_end|>"


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
    assert (rendered.skipped, rendered.unanswered, len(rendered.examples)) == (0, 1, 1)


def test_an_answer_to_nothing_is_skipped_and_counted(tokenizer):
    opening = chat(("assistant", "hello"), ("user", "hi"))
    rendered = render([opening, ONE], tokenizer, 512)
    assert (rendered.unanswered, len(rendered.examples)) == (1, 1)


def test_an_assistant_that_begins_is_trained_on_with_all_where_the_template_prompts_for_it(tokenizer):
    both = chat(("assistant", "hello"), ("user", "hi"), ("assistant", "well"))
    (example,) = render([both], tokenizer, 512, "all_assistant").examples
    assert weighted_text(example, tokenizer) == "hello<|im_end|>well<|im_end|>"
    asking = Template(tokenizer, "{{ raise_exception('nobody asks') if not messages }}" + tokenizer.chat_template)
    (rendered,) = as_renderer(asking, "all_assistant").encode([both])
    assert rendered.signs == {"greeting"}
    assert tokenizer.decode(rendered.encoded[0].tokens[rendered.encoded[0].completion]) == "well<|im_end|>"


def test_an_empty_answer_still_ends_the_turn(tokenizer):
    (example,) = render([chat(("user", "x"), ("assistant", ""))], tokenizer, 512).examples
    assert weighted_text(example, tokenizer) == "<|im_end|>"


@pytest.mark.parametrize(
    "text", ["naïve café 漢字 🜂", "\n\nstarts with newlines", " \t", "a" * 500, "<|im_end|>", "\x00\x7f"]
)
def test_any_text_renders_to_itself_and_to_the_prompts_own_tokens(tokenizer, text):
    conversation = chat(("user", text), ("assistant", text))
    (example,) = render([conversation], tokenizer, 4096).examples
    prompt = prompt_tokens(conversation.messages[:1], tokenizer)
    assert example.tokens[: len(prompt)].tolist() == prompt
    assert tokenizer.decode(example.tokens[len(prompt) :]) == f"{text}<|im_end|>"
    assert example.weights[: len(prompt) - 1].sum() == 0
    assert example.weights[len(prompt) - 1 :].all()


class Template:
    """The packaged tokenizer with another chat template."""

    def __init__(self, tokenizer, template: str, is_fast: bool = True) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.is_fast = is_fast

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **options):
        return self._tokenizer(text, **options)

    def apply_chat_template(self, conversation, **options):
        return self._tokenizer.apply_chat_template(conversation, chat_template=self._template, **options)


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer):
    counting = Template(tokenizer, "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(RenderingError, match=r"train.jsonl:7: .*message 3 .*cannot be told apart"):
        render([ONE], counting, 512)


def test_a_template_that_rewrites_earlier_answers_trains_on_the_last_one(tokenizer):
    forgetful = Template(
        tokenizer,
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}[...]"
        "{% else %}{{ m.role[0] }}:{{ m.content }};{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}",
    )
    assert weighted_text(render([TWO], forgetful, 512).examples[0], tokenizer) == "d;"


def test_where_earlier_answers_are_rewritten_each_is_an_example_after_its_own_prompt(tokenizer):
    forgetful = Template(
        tokenizer,
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}[...]"
        "{% else %}{{ m.role[0] }}:{{ m.content }};{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}",
    )
    rendered = render([TWO, TWO], forgetful, 512, "all_assistant")
    texts = [tokenizer.decode(example.tokens) for example in rendered.examples]
    assert texts == ["u:a?;a:b;", "u:a?;[...]u:c?;a:d;"] * 2
    assert [weighted_text(example, tokenizer) for example in rendered.examples] == ["b;", "d;"] * 2
    assert rendered.conversation_of.tolist() == [0, 0, 1, 1]
    assert rendered.read_once() == 2 * rendered.examples[1].token_count


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


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("train_on", ["last_assistant", "last_turn", "all_assistant"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chats=st.lists(CHATS, min_size=1, max_size=4))
@example(chats=[[("system", ""), ("assistant", "")]])  # a template without words of its own makes no token of it
def test_every_answer_stands_behind_the_tokens_that_the_model_will_be_given(tokenizer, template, train_on, chats):
    with_template = Template(tokenizer, template or tokenizer.chat_template)
    conversations = [chat(*turns) for turns in chats]
    for conversation, rendered in zip(
        conversations, as_renderer(with_template, train_on).encode(conversations), strict=True
    ):
        roles = [message["role"] for message in conversation.messages]
        answers = [i for i, role in enumerate(roles) if role == "assistant"]
        if train_on != "all_assistant":
            answers = [i for i in answers[-1:] if i] if train_on == "last_assistant" else last_turn(roles)
        found = []
        for encoded in rendered.encoded:
            edges = np.flatnonzero(np.diff([0, *encoded.completion.astype(int), 0])).tolist()
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                found.append((encoded.tokens[:start].tolist(), encoded.tokens[start:end].tolist()))
        expected = []
        for i in answers:
            prompt, answered = (
                with_template.apply_chat_template(
                    [list(conversation.messages[: i + past])], tokenize=False, add_generation_prompt=not past
                )[0]
                for past in (0, 1)
            )
            answer = answered[len(prompt) :]
            answer = answer[: answer.rindex("<|im_end|>") + 10] if template is None else without_end(answer)
            if answer:
                expected.append((tokenizer.encode(prompt, add_special_tokens=False), answer))
        if any(not start for start, _ in expected) or template == TEMPLATES["bare"]:
            continue  # no edge shows where an answer ends and the next begins
        assert [(start, tokenizer.decode(tokens)) for start, tokens in found] == expected


def last_turn(roles):
    """Return the answers behind the user's last message that has one."""
    last = max((i for i, role in enumerate(roles) if role == "assistant"), default=0)
    asked = max((i for i in range(last) if roles[i] == "user"), default=0)
    return [i for i, role in enumerate(roles) if role == "assistant" and i > asked]


def without_end(answer):
    """Return an answer of a template that writes no special token: all of it, unless it ends in one by itself."""
    ends = answer.rstrip().endswith(("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    return answer.rstrip() if ends else answer


def test_the_conversation_that_a_template_refuses_is_named_among_many(tokenizer):
    strict = Template(
        tokenizer,
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not that') }}{% endif %}{% endfor %}",
    )
    good = chat(("user", "x"), ("assistant", "y"))
    bad = Conversation(chat(("user", "no"), ("assistant", "y")).messages, "train.jsonl:9")
    with pytest.raises(RenderingError, match=r"^train.jsonl:9: the chat template refused 2 messages .*not that"):
        render([good, bad, good], strict, 512)
