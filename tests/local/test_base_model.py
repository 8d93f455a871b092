"""The embedded base model: it loads anywhere, reads any text, and its chat template keeps prompts as prefixes."""

import logging
import random
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
BASE_MODEL = ROOT / "tinker_utils" / "local" / "base_model"
SCRIPTS = ROOT / "scripts"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(BASE_MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(BASE_MODEL, local_files_only=True).eval()


def test_files_are_small_enough_to_live_in_the_repository():
    sizes = {path.name: path.stat().st_size for path in BASE_MODEL.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(sizes)
    assert max(sizes.values()) < 4 * MEGABYTE
    assert sum(sizes.values()) < 8 * MEGABYTE


def test_loads_offline_without_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING), warnings.catch_warnings():
            warnings.simplefilter("error")
            tokenizer = transformers.AutoTokenizer.from_pretrained(BASE_MODEL)
            model = transformers.AutoModelForCausalLM.from_pretrained(BASE_MODEL)
    finally:
        transformers.utils.logging.disable_propagation()
    assert caplog.records == []
    assert isinstance(model, transformers.Qwen3ForCausalLM)
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size


def test_every_weight_is_finite(model):
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_end_of_turn_ends_generation(tokenizer, model):
    end_of_text, im_start, im_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert (end_of_text, im_start, im_end) == (0, 1, 2)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (im_end, end_of_text, None)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (im_end, end_of_text)
    assert model.generation_config.eos_token_id == [im_end, end_of_text]


def test_an_answer_ends_by_itself(tokenizer, model):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Thank you."}], add_generation_prompt=True, return_tensors="pt"
    )
    generated = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert generated[-1] == tokenizer.eos_token_id


def test_runs_on_two_thousand_tokens_with_the_same_numbers_each_time(model):
    tokens = torch.arange(2048).remainder(model.config.vocab_size)[None]
    with torch.no_grad():
        first, second = (model(input_ids=tokens, logits_to_keep=8).logits for _ in range(2))
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "text",
    [
        "plain text, with  two spaces and a trailing one ",
        " leading space",
        "lines\n\n\nand\r\nreturns\tand tabs\n",
        "Grüße aus Zürich, naïve café, ﬁne, 你好，世界, Здравствуйте, שלום, مرحبا",
        "e\u0301 is not \u00e9, and both come back as they were",
        "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 \U0010ffff",
        "\x00\x01\x07\x1b[31m\x7f\u200b\ufeff\u2028",
        'def f(x):\n    return x ** 2  # "code" {[<&^%$~`|\\>]}\n',
        "it 's a space before , and don 't clean it up .",
        "",
    ],
)
def test_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_template_is_plain_chatml(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  Hi\nthere "},
        {"role": "assistant", "content": "Hello."},
    ]
    conversation = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n  Hi\nthere <|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False) == conversation
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == conversation.removesuffix("Hello.<|im_end|>\n")
    assert tokenizer.apply_chat_template(messages).input_ids == tokenizer.encode(conversation)


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(
        st.text(st.one_of(st.sampled_from(" \n\r\tab1.<|_é👍"), st.characters(exclude_categories=["Cs"])), max_size=12),
        min_size=2,
        max_size=6,
    )
)
def test_a_prompt_is_a_prefix_of_its_conversation_whatever_the_answer(contents, tokenizer):
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)
    ]
    for end in range(1, len(messages), 2):
        prompt = tokenizer.apply_chat_template(messages[:end], add_generation_prompt=True).input_ids
        whole = tokenizer.apply_chat_template(messages[: end + 1]).input_ids
        assert whole[: len(prompt)] == prompt
        assert whole[-2:] == [tokenizer.eos_token_id, tokenizer.encode("\n")[0]]


def test_the_committed_tokenizer_is_what_the_script_trains(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    import pretrain_base_model

    pretrain_base_model.train_tokenizer(random.Random(0)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (BASE_MODEL / name).read_bytes()


def test_a_few_steps_of_pretraining_give_the_same_weights_each_time(tokenizer, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import pretrain_base_model as script

    monkeypatch.setattr(script, "BATCH_BLOCKS", 1)

    def trained():
        torch.manual_seed(0)
        model = script.build_model(tokenizer)
        script.pretrain(model, tokenizer, random.Random(0), steps=2)
        return model.state_dict()

    first, second = trained(), trained()
    assert all(torch.equal(first[name], second[name]) for name in first)
