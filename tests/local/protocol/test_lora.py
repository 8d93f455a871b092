"""LoRA settings that travel as metadata: read, refused, and honoured by peft."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import tinker
from support.local_service import MODEL, Running, service_client
from tinker import types

from tinker_utils.local import lora_user_metadata
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.lora import LoraMetadata, LoraSpec, LoraSwitches, read_lora_metadata, resolve
from tinker_utils.local.protocol.paths import Reference

MODULES = {"q_proj": "attn", "k_proj": "attn", "up_proj": "mlp", "lm_head": "unembed"}


def test_metadata_round_trips() -> None:
    metadata = lora_user_metadata(32, 0.05, ["q_proj", "v_proj"])
    assert metadata == {"lora_alpha": "32", "lora_dropout": "0.05", "lora_target_modules": "q_proj,v_proj"}
    assert read_lora_metadata({**metadata, "note": "mine"}) == LoraMetadata(32.0, 0.05, ("q_proj", "v_proj"))
    assert read_lora_metadata(lora_user_metadata()) == LoraMetadata()
    assert read_lora_metadata(lora_user_metadata(1 / 3, 0.1 + 0.2)) == LoraMetadata(1 / 3, 0.1 + 0.2)


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_alpha": "0"},
        {"lora_alpha": "-1"},
        {"lora_alpha": "nan"},
        {"lora_alpha": "much"},
        {"lora_alpha": ""},
        {"lora_dropout": "1"},
        {"lora_dropout": "inf"},
        {"lora_dropout": "-0.1"},
        {"lora_target_modules": ""},
        {"lora_target_modules": "q_proj,"},
        {"lora_target_modules": "q_proj,q_proj"},
        {"lora_target_modules": "q.*"},
    ],
)
def test_bad_metadata_names_its_key(metadata: dict[str, str]) -> None:
    (key,) = metadata
    with pytest.raises(RequestError, match=key):
        read_lora_metadata(metadata)


def test_defaults_are_all_modules_of_the_groups_that_are_on() -> None:
    spec = resolve("m", LoraSwitches(8, seed=1, train_mlp=False), LoraMetadata(), MODULES)
    assert (spec.alpha, spec.dropout) == (32.0, 0.0)
    assert spec.target_modules == ("k_proj", "lm_head", "q_proj")
    assert msgspec.json.decode(msgspec.json.encode(spec), type=LoraSpec) == spec


@pytest.mark.parametrize(
    ("switches", "modules", "message"),
    [
        (LoraSwitches(0), None, "rank must be from 1"),
        (LoraSwitches(10**6), None, "rank must be from 1"),
        (LoraSwitches(4), ("q_proj", "w1"), "'w1', but the linear modules of this model are q_proj"),
        (LoraSwitches(4, train_mlp=False), ("up_proj",), "train_mlp is off"),
        (LoraSwitches(4, None, False, False, False), None, "At least one of train_attn"),
    ],
)
def test_contradictions_are_refused(switches: LoraSwitches, modules, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve("m", switches, LoraMetadata(target_modules=modules), MODULES)


def saved_config(running: Running, model: tinker.TrainingClient) -> dict:
    reference = Reference.from_path(model.save_state("config").result().path)
    (file,) = (running.store / "runs" / reference.run_id.replace(":", "_")).glob("weights/config~*/adapter_config.json")
    return json.loads(file.read_text())


def test_peft_gets_what_was_asked_for(local_service: Running) -> None:
    with service_client(local_service) as client:
        metadata = lora_user_metadata(20, 0.25, ["v_proj", "down_proj"])
        model = client.create_lora_training_client(MODEL, rank=6, user_metadata=metadata).result()
        config = saved_config(local_service, model)
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (6, 20, 0.25)
        assert config["target_modules"] == ["down_proj", "v_proj"]
        assert (config["base_model_name_or_path"], config["task_type"], config["bias"]) == (MODEL, "CAUSAL_LM", "none")
        assert str(Path.home()) not in json.dumps(config)
        switched = client.create_lora_training_client(MODEL, rank=2, train_mlp=False, train_unembed=False).result()
        assert saved_config(local_service, switched)["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_alpha_scales_the_update_and_dropout_disturbs_training_only(local_service: Running) -> None:
    datum = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6, 7]),
        loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [1.0, 1.0, 1.0]},
    )

    def losses(**settings: float) -> tuple[float, float, float]:
        """Gradient norm of the first step; then, after it, the loss in training and in evaluation."""
        model = client.create_lora_training_client(
            MODEL, rank=4, seed=2, user_metadata=lora_user_metadata(**settings)
        ).result()
        model.forward_backward([datum], "cross_entropy")
        norm = model.optim_step(types.AdamParams(learning_rate=0.05)).result().metrics["grad_norm"]
        evaluated = model.forward([datum], "cross_entropy").result().metrics["loss:sum"]
        trained = model.forward_backward([datum], "cross_entropy").result().metrics["loss:sum"]
        return norm, trained, evaluated

    with service_client(local_service) as client:
        small, large, noisy = losses(alpha=8), losses(alpha=32), losses(alpha=8, dropout=0.5)
    # B starts at zero, so the first gradient is proportional to the scaling alpha / rank.
    assert large[0] == pytest.approx(4 * small[0], rel=1e-4)
    assert small[1] == pytest.approx(small[2], rel=1e-6)
    assert noisy[1] != pytest.approx(noisy[2], rel=1e-3)


def test_bad_settings_are_refused_when_the_model_is_made(local_service: Running) -> None:
    with service_client(local_service) as client:
        for metadata, message in (
            ({"lora_alpha": "many"}, "lora_alpha"),
            ({"lora_target_modules": "w1"}, "linear modules of this model are"),
        ):
            with pytest.raises(tinker.BadRequestError, match=message):
                client.create_lora_training_client(MODEL, user_metadata=metadata).result()
        with pytest.raises(tinker.BadRequestError, match="rank"):
            client.create_lora_training_client(MODEL, rank=0).result()
