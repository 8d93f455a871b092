"""Parameters of adapters: by hand, and counted in real ones that PEFT makes."""

import dataclasses
import json

import pytest
from peft import LoraConfig as PeftConfig, get_peft_model
from support.local_service import MODEL_DIRECTORY
from transformers import AutoConfig, AutoModelForCausalLM

from tinker_utils.config.settings import LoraConfig, TrainingConfig
from tinker_utils.data import tokenizers
from tinker_utils.data.tokenizers import model_config
from tinker_utils.plan.adapter_size import (
    _FAMILIES,
    _KNOWN,
    about_rank,
    describe_adapter,
    model_shape,
    parameters,
    power_of_two,
    shape_of,
    trained_modules,
)

TINY = TrainingConfig(service="local", model="tiny")
HOSTED = TrainingConfig(service="tinker", model="Qwen/Qwen3-8B")
# https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
QWEN3_8B = {
    "model_type": "qwen3", "num_hidden_layers": 36, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936,
}  # fmt: skip


def adapted(config, rank, *modules):
    """The settings with another adapter."""
    lora = LoraConfig(rank=rank, **({"target_modules": modules} if modules else {}))
    return dataclasses.replace(config, lora=lora)


def counted(model, rank, modules):
    """Parameters that PEFT adds to a model."""
    adapter = get_peft_model(model, PeftConfig(r=rank, target_modules=list(modules)))
    return sum(each.numel() for name, each in adapter.named_parameters() if ".lora_" in name)


def test_by_hand():
    # q and o: 4096 + 4096; k and v: 4096 + 1024; gate, up and down: 4096 + 12288; 36 layers.
    per_rank = 36 * (2 * 8192 + 2 * 5120 + 3 * 16384)
    assert per_rank == 2_727_936
    assert parameters(adapted(HOSTED, 64), shape_of(QWEN3_8B)) == 64 * per_rank == 174_587_904
    assert parameters(adapted(HOSTED, 16, "lm_head"), shape_of(QWEN3_8B)) == 16 * (4096 + 151936)


def test_what_is_packaged_is_what_its_config_says():
    assert {"Qwen/Qwen3-8B": shape_of(QWEN3_8B)} == _KNOWN
    assert model_shape(HOSTED) == model_shape(dataclasses.replace(HOSTED, model="Qwen/Qwen3-8B:peft:262144"))


def test_services_other_than_the_embedded_one_train_whole_groups():
    some = adapted(HOSTED, 8, "q_proj", "down_proj")
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert trained_modules(some) == every
    assert trained_modules(adapted(HOSTED, 8, "v_proj", "lm_head")) == (*every[:4], "lm_head")
    assert trained_modules(dataclasses.replace(some, service="local")) == ("q_proj", "down_proj")


@pytest.mark.parametrize(
    "modules",
    [
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ("k_proj", "down_proj"),
        ("q_proj", "lm_head"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_as_many_as_peft_has_on_the_packaged_model(modules):
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY)
    assert parameters(adapted(TINY, 6, *modules), model_shape(TINY)) == counted(model, 6, modules)


@pytest.mark.parametrize("family", sorted(_FAMILIES))
def test_as_many_as_peft_has_on_each_family(family, tmp_path):
    sizes = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 40, "vocab_size": 56, "head_dim": 10, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    model.config.save_pretrained(tmp_path)
    there = TrainingConfig(service="local", model=str(tmp_path))
    modules = there.lora.target_modules
    assert parameters(adapted(there, 5), model_shape(there)) == counted(model, 5, modules)


def test_what_a_config_leaves_out_follows_from_the_rest():
    old = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
           "intermediate_size": 48, "vocab_size": 56}  # fmt: skip
    shape = shape_of(old)
    assert (shape.queries, shape.keys) == (32, 32)
    assert shape_of({**old, "num_key_value_heads": None, "head_dim": None}) == shape


@pytest.mark.parametrize(
    "config",
    [
        None, [], "text", 3, {}, {"model_type": ["qwen3"]},
        *({**QWEN3_8B, key: value} for key in QWEN3_8B for value in ("8", [8], {"8": 8}, 8.0, True, -8, 10**400)),
        *({k: v for k, v in QWEN3_8B.items() if k != key} for key in ("model_type", "hidden_size", "vocab_size")),
        {**QWEN3_8B, "model_type": "qwen3_moe", "num_experts": 128},
        {**QWEN3_8B, "model_type": "deepseek_v3"},
        {"model_type": "gemma3", "text_config": QWEN3_8B},
        {**QWEN3_8B, "hidden_size": 3, "head_dim": None},
    ],
)  # fmt: skip
def test_what_is_of_another_shape_is_not_known(config, tmp_path):
    assert shape_of(config) is None
    (tmp_path / "config.json").write_text(json.dumps(config) if config != "text" else "text", encoding="utf-8")
    there = TrainingConfig(service="local", model=str(tmp_path))
    assert model_shape(there) is None
    sentence = describe_adapter(there, None, 1_250_000)
    assert sentence.startswith(
        "How many LoRA parameters (rank 16) there are for 1.25 M completion tokens is not known: "
    )
    assert list(about_rank(there, 10**6, 10**12, None)) == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[" * 10**5, b'{"model_type": "qwen3"' + b" " * (1 << 20)])
def test_a_config_that_cannot_be_read_is_not_known(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert model_config(TrainingConfig(service="local", model=str(tmp_path))) is None


def test_a_model_of_the_hub_is_looked_up_where_its_tokenizer_came_from(tmp_path, monkeypatch):
    """In the hub's cache, as its client leaves it there; tests reach no hub."""
    tokenizers._on_hub.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("0" * 40) / "config.json").write_text(json.dumps(QWEN3_8B), encoding="utf-8")
    for name in ("org/name", "org/name:peft:1000", "org/name/variant"):
        assert model_shape(TrainingConfig(model=name)) == shape_of(QWEN3_8B)
    for name in ("org/other", "no name", "thinkingmachines/Inkling"):
        assert model_shape(TrainingConfig(model=name)) is None


def test_both_sides_of_the_rank():
    shape, per_rank = shape_of(QWEN3_8B), 2_727_936

    def said(rank, examples, tokens, known=shape):
        return list(about_rank(adapted(HOSTED, rank), examples, tokens, known))

    assert said(16, 19_845, 2_000_000) == []
    (ample,) = said(64, 19_845, 2_000_000)
    assert ample == "Rank 64 has room to memorize 19,845 examples; 16 is enough for most tasks."
    assert said(64, 100_000, 2_000_000) == []
    assert said(16, 10**6, 16 * per_rank) == []
    (small,) = said(16, 10**6, 16 * per_rank + 1)
    assert small == (
        "Rank 16 may be too small to learn all of the data: it has 43.6 M LoRA parameters for 43.6 M completion "
        "tokens; a rank of at least 32 has as many."
    )
    # The advice of the one never brings up the other: what is asked for at least is enough, too.
    (small,) = said(64, 50_000, 100 * per_rank)
    assert small.endswith("a rank of at least 128 has as many.")
    assert said(128, 50_000, 100 * per_rank) == []
    (ample,) = said(128, 50_000, 30 * per_rank)
    assert ample == "Rank 128 has room to memorize 50,000 examples; 32 is enough for their 81.8 M completion tokens."
    assert said(32, 50_000, 30 * per_rank) == []
    (small,) = said(1024, 10**7, 5000 * per_rank)
    assert small.endswith("; even 1,024 has fewer.")
    # Without a shape or without tokens there is one side only.
    assert said(64, 10, 10**12, known=None) == said(64, 10, None) != []


@pytest.mark.parametrize(("at_least", "found"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_rounding_up(at_least, found):
    assert power_of_two(at_least) == found


def test_the_line():
    shape = model_shape(TINY)
    assert (
        describe_adapter(adapted(TINY, 4), shape, 517) == "38.9 k LoRA parameters (rank 4) for 517 completion tokens."
    )
    estimated = describe_adapter(HOSTED, model_shape(HOSTED), 1_234_567, estimated=True)
    assert estimated == "43.6 M LoRA parameters (rank 16) for about 1.23 M completion tokens."
