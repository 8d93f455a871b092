"""Training through the SDK: losses, gradients and steps equal what plain transformers, peft and torch compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.torch
import tinker
import torch
from support.local_service import (
    MODEL,
    MODEL_DIRECTORY,
    Running,
    logprobs,
    post,
    random_data,
    retrieve,
    service_client,
)
from support.reference import download, reference_logprobs, reference_model
from tinker import types

from tinker_utils.local import lora_user_metadata
from tinker_utils.local.protocol.tensors import messages

# Two threads that wait for each other on a busy machine are slower than one.
torch.set_num_threads(1)

# peft: it asks transformers for an attribute by its old name, and it points out that a tied head is adapted.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
]


@pytest.fixture(scope="module")
def client(local_service: Running):
    with service_client(local_service) as client:
        yield client


def new_model(client: tinker.ServiceClient, *, dropout: float = 0.0, seed: int = 3, **options):
    metadata = lora_user_metadata(alpha=16, dropout=dropout)
    return client.create_lora_training_client(MODEL, rank=4, seed=seed, user_metadata=metadata, **options).result()


def reference_loss(model: peft.PeftModel, data: list[types.Datum]) -> torch.Tensor:
    weights = [torch.tensor(datum.loss_fn_inputs["weights"].data) for datum in data]
    rows = [-(reference_logprobs(model, datum) * weight).sum() for datum, weight in zip(data, weights, strict=True)]
    return torch.stack(rows).sum()


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_three_steps_equal_a_plain_loop(local_service: Running, client, tmp_path: Path, clip: float) -> None:
    model = new_model(client)
    reference = reference_model(MODEL_DIRECTORY, download(local_service, model, "start", tmp_path))
    optimizer = torch.optim.AdamW(
        [p for p in reference.parameters() if p.requires_grad], 0.01, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.1
    )
    for step in range(3):
        data = random_data(step)
        output = model.forward_backward(data, "cross_entropy")
        stepped = model.optim_step(types.AdamParams(learning_rate=0.01, weight_decay=0.1, grad_clip_norm=clip))
        for ours, datum in zip(logprobs(output.result()), data, strict=True):
            np.testing.assert_allclose(ours, reference_logprobs(reference, datum).detach(), atol=1e-4)
        loss = reference_loss(reference, data)
        assert output.result().metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip or torch.inf)
        assert stepped.result().metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
        optimizer.step()
    trained = safetensors.torch.load_file(download(local_service, model, "end", tmp_path) / "adapter_model.safetensors")
    expected = peft.get_peft_model_state_dict(reference, save_embedding_layers=False)
    assert trained.keys() == expected.keys()
    for name, weight in trained.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3)


def test_an_exported_adapter_reproduces_the_logprobs(local_service: Running, client, tmp_path: Path) -> None:
    model = new_model(client, dropout=0.1)
    for step in range(3):
        model.forward_backward(random_data(step), "cross_entropy")
        model.optim_step(types.AdamParams(learning_rate=0.02))
    data = random_data(9)
    ours = logprobs(model.forward(data, "cross_entropy").result())
    reference = reference_model(MODEL_DIRECTORY, download(local_service, model, "adapter", tmp_path))
    for row, datum in zip(ours, data, strict=True):
        np.testing.assert_allclose(row, reference_logprobs(reference, datum).detach(), atol=1e-4)


def test_gradients_accumulate_until_a_step(client) -> None:
    first, second = random_data(1), random_data(2)
    whole, parts = new_model(client), new_model(client)
    whole.forward_backward([*first, *second], "cross_entropy")
    parts.forward_backward(first, "cross_entropy")
    parts.forward_backward(second, "cross_entropy")
    norms = [model.optim_step(types.AdamParams()).result().metrics["grad_norm"] for model in (whole, parts)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    after = [model.forward(first, "cross_entropy").result().metrics["loss:sum"] for model in (whole, parts)]
    assert after[0] == pytest.approx(after[1], rel=1e-6)


def test_positions_without_weight_have_logprobs_and_no_gradient(client) -> None:
    model = new_model(client)
    datum = random_data(4, [15])[0]
    unweighted = types.Datum(
        model_input=datum.model_input,
        loss_fn_inputs={**datum.loss_fn_inputs, "weights": np.zeros(15, np.float32)},
    )
    output = model.forward_backward([unweighted], "cross_entropy").result()
    assert output.metrics["loss:sum"] == 0
    assert logprobs(output)[0].shape == (15,)
    assert (logprobs(output)[0] < 0).all()
    assert model.optim_step(types.AdamParams()).result().metrics["grad_norm"] == 0


def test_several_targets_a_position(client) -> None:
    """Targets [T, K], dense or sparse on the wire: the loss is the sum over all of them."""
    model = new_model(client)
    tokens = types.ModelInput.from_ints([5, 6, 7])
    targets = np.array([[1, 2], [3, 4], [8, 9]])
    weights = np.array([[0.5, 0.25], [1, 0], [0, 2]], np.float32)
    both = types.Datum(model_input=tokens, loss_fn_inputs={"target_tokens": targets, "weights": weights})
    wide = model.forward([both], "cross_entropy").result()
    single = [
        types.Datum(
            model_input=tokens, loss_fn_inputs={"target_tokens": targets[:, k], "weights": weights[:, k].copy()}
        )
        for k in (0, 1)
    ]
    narrow = model.forward([*single, *random_data(0)], "cross_entropy").result()
    columns = np.stack(logprobs(narrow)[:2], 1)
    np.testing.assert_allclose(logprobs(wide)[0].reshape(3, 2), columns, atol=1e-5)
    assert wide.metrics["loss:sum"] == pytest.approx(-(columns * weights).sum(), rel=1e-5)
    sparse_weights = torch.zeros(3, 40)
    sparse_weights[:, :2] = torch.from_numpy(weights)
    padded = torch.zeros(3, 40, dtype=torch.int64)
    padded[:, :2] = torch.from_numpy(targets)
    sparse = types.Datum(
        model_input=tokens, loss_fn_inputs={"target_tokens": padded, "weights": sparse_weights.to_sparse().to_dense()}
    )
    loss = model.forward([sparse], "cross_entropy").result().metrics["loss:sum"]
    assert loss == pytest.approx(wide.metrics["loss:sum"], rel=1e-5)


def test_a_custom_loss_has_the_gradient_of_its_formula(client) -> None:
    data = random_data(5)

    def weighted(rows: list[types.Datum], values: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        weights = [torch.tensor(row.loss_fn_inputs["weights"].data) for row in rows]
        return -torch.stack([(v * w).sum() for v, w in zip(values, weights, strict=True)]).sum(), {"rows": len(rows)}

    plain, custom = new_model(client), new_model(client)
    expected = plain.forward_backward(data, "cross_entropy").result().metrics["loss:sum"]
    result = custom.forward_backward_custom(data, weighted).result()
    assert result.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["rows"] == len(data)
    norms = [model.optim_step(types.AdamParams()).result().metrics["grad_norm"] for model in (plain, custom)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def trajectory(model: tinker.TrainingClient, steps: int, between=lambda step: None) -> list[bytes]:
    """The logprobs of some training steps, with dropout, as bytes."""
    seen = []
    for step in range(steps):
        output = model.forward_backward(random_data(step), "cross_entropy")
        model.optim_step(types.AdamParams(learning_rate=0.01)).result()
        seen.append(b"".join(row.tobytes() for row in logprobs(output.result())))
        between(step)
    return seen


def test_models_do_not_touch_each_other_and_evaluations_leave_no_trace(local_service: Running, client) -> None:
    alone = trajectory(new_model(client, dropout=0.2), 4)
    model, other = new_model(client, dropout=0.2), new_model(client, dropout=0.4, seed=8)
    with service_client(local_service) as second:
        third = new_model(second, seed=9, train_mlp=False)

        def disturb(step: int) -> None:
            other.forward_backward(random_data(50 + step, [30, 3]), "cross_entropy")
            third.forward_backward(random_data(70 + step), "cross_entropy")
            model.forward(random_data(90 + step), "cross_entropy")
            other.optim_step(types.AdamParams(learning_rate=0.1)).result()

        assert trajectory(model, 4, disturb) == alone


def test_without_a_seed_models_differ(client) -> None:
    models = [client.create_lora_training_client(MODEL, rank=4).result() for _ in range(2)]
    assert trajectory(models[0], 2) != trajectory(models[1], 2)


def test_requests_run_in_the_order_of_their_sequence_numbers(local_service: Running, client) -> None:
    model = new_model(client)
    step = {"model_id": model.model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.01}}
    status, early = post(local_service, "optim_step", step)
    assert status == 200
    status, late = post(local_service, "forward_backward", batch(model, 1), "application/x-protobuf")
    assert status == 200
    assert retrieve(local_service, early)[1]["metrics"]["grad_norm"] > 0
    assert retrieve(local_service, late)[0] == 200


def test_a_repeated_request_runs_once(local_service: Running, client) -> None:
    norms = []
    for repeats in (1, 3):
        model = new_model(client)
        for _ in range(repeats):
            _, answer = post(local_service, "forward_backward", batch(model, 1), "application/x-protobuf")
        step = {"model_id": model.model_id, "seq_id": 2, "adam_params": {}}
        answers = [post(local_service, "optim_step", step)[1] for _ in range(repeats)]
        assert len({answer["request_id"] for answer in answers}) == 1
        results = [retrieve(local_service, answers[0]) for _ in range(2)]
        assert results[0] == results[1]
        norms.append(results[0][1]["metrics"]["grad_norm"])
    assert norms[0] == norms[1]


def batch(model: tinker.TrainingClient, sequence: int) -> bytes:
    """A forward_backward request as the SDK would send it."""
    message = messages.ForwardBackwardRequest(model_id=model.model_id, seq_id=sequence, loss_fn="cross_entropy")
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.array([1, 2, 3], "<i4").tobytes()
    for name, values, dtype in (("target_tokens", np.array([2, 3, 4]), 2), ("weights", np.ones(3, np.float32), 1)):
        datum.loss_fn_inputs[name].dtype = dtype
        datum.loss_fn_inputs[name].dense = values.tobytes()
        datum.loss_fn_inputs[name].shape.append(3)
    return message.SerializeToString()


def test_a_refused_request_does_not_hold_up_the_next(client) -> None:
    model = new_model(client)
    with pytest.raises(tinker.BadRequestError, match="ttl_seconds"):
        model.save_state("short", ttl_seconds=5).result()
    with pytest.raises(tinker.UnprocessableEntityError, match="learning_rate"):
        model.optim_step(types.AdamParams(learning_rate=float("nan"))).result()
    assert model.forward(random_data(0), "cross_entropy").result().metrics["loss:sum"] > 0


def with_inputs(**inputs) -> list[types.Datum]:
    return [types.Datum(model_input=types.ModelInput.from_ints([1, 2]), loss_fn_inputs=inputs)]


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        (with_inputs(target_tokens=[1, 2]), "cross_entropy", "must be target_tokens, weights for cross_entropy"),
        (with_inputs(target_tokens=[1, 2], weights=[1.0, np.nan]), "cross_entropy", "NaN or infinity"),
        (with_inputs(target_tokens=[1, 5000], weights=[1.0, 1.0]), "cross_entropy", "token 5000"),
        (with_inputs(target_tokens=[1, 2, 3], weights=[1.0, 1.0, 1.0]), "cross_entropy", "shape"),
        (with_inputs(target_tokens=[1, 2], weights=[1.0, 1.0]), "gspo", "is not served here"),
        (random_data(0, [5000]), "cross_entropy", "context holds 4096"),
    ],
)
def test_a_failed_batch_fails_the_step_behind_it_and_nothing_else(client, data, loss: str, message: str) -> None:
    model = new_model(client)
    model.forward_backward(random_data(0), "cross_entropy")
    failed = model.forward_backward(data, loss)
    step = model.optim_step(types.AdamParams())
    with pytest.raises(tinker.RequestFailedError, match=message) as caught:
        failed.result()
    assert caught.value.category == types.RequestErrorCategory.User
    with pytest.raises(tinker.RequestFailedError, match="forward_backward before it failed"):
        step.result()
    model.forward_backward(random_data(0), "cross_entropy")
    assert model.optim_step(types.AdamParams()).result().metrics["grad_norm"] > 0


def test_a_step_without_a_gradient_is_an_error(client) -> None:
    with pytest.raises(tinker.RequestFailedError, match="no forward_backward came before it"):
        new_model(client).optim_step(types.AdamParams()).result()


def test_a_model_that_is_not_served_is_refused_with_what_is(client) -> None:
    with pytest.raises(tinker.NotFoundError, match=f"ask for {MODEL}"):
        client.create_lora_training_client("Qwen/Qwen3-8B").result()


def test_another_optimizer_is_refused(client) -> None:
    with pytest.raises(tinker.BadRequestError, match="dimuon"):
        client.create_lora_training_client(MODEL, optimizer=types.DimuonOptimizerConfig()).result()


def test_numbers_that_went_wrong_are_reported_as_they_are(client) -> None:
    model = new_model(client)
    for _ in range(2):
        output = model.forward_backward(random_data(0), "cross_entropy")
        step = model.optim_step(types.AdamParams(learning_rate=1e30))
    assert np.isnan(output.result().metrics["loss:sum"])
    assert step.result().metrics == {"grad_norm_nonfinite": 1.0}


def test_info_and_tokenizer(client) -> None:
    model = new_model(client)
    info = model.get_info()
    assert (info.model_data.model_name, info.lora_rank, info.is_lora) == (MODEL, 4, True)
    assert model.get_tokenizer().decode(model.get_tokenizer().encode("abc")) == "abc"
