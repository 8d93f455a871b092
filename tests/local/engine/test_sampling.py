"""Sampling through the SDK, against transformers' own generation and the distribution that a request names."""

from __future__ import annotations

import numpy as np
import pytest
import tinker
import torch
import transformers
from support.local_service import MODEL, MODEL_DIRECTORY, Running, random_data, service_client
from tinker import types
from tinker.types import ModelInput, SamplingParams

from tinker_utils.local.engine.base_model import Base
from tinker_utils.local.engine.sampling import _choose, sample
from tinker_utils.local.protocol.errors import RequestError
from tinker_utils.local.protocol.queries import SampleQuery
from tinker_utils.local.server.samplers import Gathering

END = 2
"""The tiny model's <|im_end|>."""
# Two threads that wait for each other on a busy machine are slower than one.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def client(local_service: Running):
    with service_client(local_service) as client:
        yield client


@pytest.fixture(scope="module")
def base(client) -> tinker.SamplingClient:
    return client.create_sampling_client(base_model=MODEL).result()


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(MODEL_DIRECTORY)


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompt(tokenizer) -> list[int]:
    message = [{"role": "user", "content": "Say something about the river."}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)


def draw(client: tinker.SamplingClient, prompt: list[int], count: int = 1, **params) -> list[types.SampledSequence]:
    return list(client.sample(ModelInput.from_ints(prompt), count, SamplingParams(**params)).result().sequences)


def test_greedy_sampling_equals_generate(base, model, prompt: list[int]) -> None:
    ours = draw(base, prompt, temperature=0, max_tokens=40)[0]
    generated = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=40, return_dict_in_generate=True, output_logits=True
    )
    expected = generated.sequences[0, len(prompt) :].tolist()
    assert ours.tokens == expected
    scores = [
        logits[0].float().log_softmax(-1)[token].item()
        for logits, token in zip(generated.logits, expected, strict=True)
    ]
    np.testing.assert_allclose(ours.logprobs, scores, atol=1e-4)
    assert ours.stop_reason == ("stop" if expected[-1] in (0, END) else "length")


def test_prompt_logprobs_equal_a_forward_pass(base, model, prompt: list[int]) -> None:
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    expected = [logits[position, token].item() for position, token in enumerate(prompt[1:])]
    scores = base.compute_logprobs(ModelInput.from_ints(prompt)).result()
    assert scores[0] is None
    np.testing.assert_allclose(scores[1:], expected, atol=1e-4)
    last = base.compute_logprobs(ModelInput.from_ints(prompt), prompt_logprobs_last_n=3).result()
    assert last[:-3] == [None] * (len(prompt) - 3)
    np.testing.assert_allclose(last[-3:], expected[-3:], atol=1e-4)


def test_a_seed_repeats_the_draws_and_samples_differ(base, prompt: list[int]) -> None:
    first, second = (draw(base, prompt, 4, seed=5, max_tokens=12, temperature=2.0) for _ in range(2))
    assert [s.tokens for s in first] == [s.tokens for s in second]
    assert len({tuple(s.tokens) for s in first}) > 1
    assert draw(base, prompt, 4, max_tokens=12, temperature=2.0) != first
    assert len({s.sequence_id for s in first}) == 4


def test_a_sample_does_not_depend_on_its_neighbours_end(base, prompt: list[int]) -> None:
    """Stopping some sequences must not change what the others draw."""
    free = draw(base, prompt, 4, seed=1, max_tokens=12, temperature=1.5, stop=[])
    stop = free[0].tokens[2]
    for before, after in zip(
        free, draw(base, prompt, 4, seed=1, max_tokens=12, temperature=1.5, stop=[stop]), strict=True
    ):
        assert before.tokens[: len(after.tokens)] == after.tokens


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_choice_is_the_greedy_one(base, prompt: list[int], narrow: dict[str, float]) -> None:
    greedy = draw(base, prompt, temperature=0, max_tokens=10)[0].tokens
    assert draw(base, prompt, max_tokens=10, **narrow)[0].tokens == greedy


def test_the_token_that_stops_belongs_to_the_sequence(base, prompt: list[int]) -> None:
    free = draw(base, prompt, temperature=0, max_tokens=10)[0].tokens
    stopped = draw(base, prompt, temperature=0, max_tokens=10, stop=[free[4]])[0]
    assert stopped.tokens == free[: free.index(free[4]) + 1]
    assert stopped.stop_reason == "stop"
    assert len(stopped.logprobs) == len(stopped.tokens)


@pytest.mark.parametrize("several", [False, True])
def test_a_stop_string_ends_a_sequence_with_the_token_that_completes_it(
    base, tokenizer, prompt: list[int], several: bool
) -> None:
    free = draw(base, prompt, temperature=0, max_tokens=20)[0].tokens
    text = tokenizer.decode(free)
    string = text[5:8]
    stopped = draw(base, prompt, temperature=0, max_tokens=20, stop=["never in there", string] if several else string)[
        0
    ]
    assert stopped.stop_reason == "stop"
    decoded = tokenizer.decode(stopped.tokens)
    assert string in decoded
    assert string not in tokenizer.decode(stopped.tokens[:-1])
    assert text.startswith(decoded)


def test_an_end_of_text_stops_unless_told_not_to(client, local_service: Running, prompt: list[int]) -> None:
    """A model that was trained to end at once ends at once; an empty list of stops lets it go on."""
    model = client.create_lora_training_client(MODEL, rank=4, seed=1).result()
    tokens = [*prompt, END]
    datum = types.Datum(
        model_input=ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [0.0] * (len(tokens) - 2) + [1.0]},
    )
    for _ in range(15):
        model.forward_backward([datum], "cross_entropy")
        model.optim_step(types.AdamParams(learning_rate=0.02)).result()
    sampler = model.save_weights_and_get_sampling_client().result()
    ended = draw(sampler, prompt, temperature=0, max_tokens=5)[0]
    assert (ended.tokens, ended.stop_reason) == ([END], "stop")
    going_on = draw(sampler, prompt, temperature=0, max_tokens=5, stop=[])[0]
    assert (len(going_on.tokens), going_on.stop_reason) == (5, "length")


def test_samplers_keep_the_weights_they_were_made_from(client, prompt: list[int]) -> None:
    model = client.create_lora_training_client(MODEL, rank=4, seed=1).result()
    before = model.save_weights_and_get_sampling_client().result()
    named = model.save_weights_for_sampler("before").result().path
    scores = before.compute_logprobs(ModelInput.from_ints(prompt)).result()
    for step in range(2):
        model.forward_backward(random_data(step), "cross_entropy")
        model.optim_step(types.AdamParams(learning_rate=0.05)).result()
    after = model.save_weights_and_get_sampling_client().result()
    assert before.compute_logprobs(ModelInput.from_ints(prompt)).result() == scores
    assert after.compute_logprobs(ModelInput.from_ints(prompt)).result() != scores
    reloaded = client.create_sampling_client(model_path=named).result()
    assert reloaded.get_base_model() == MODEL
    assert reloaded.compute_logprobs(ModelInput.from_ints(prompt)).result() == scores
    state = model.save_state("after").result().path
    from_state = client.create_sampling_client(model_path=state).result().compute_logprobs(ModelInput.from_ints(prompt))
    assert from_state.result() == after.compute_logprobs(ModelInput.from_ints(prompt)).result()


@pytest.mark.parametrize(
    ("params", "prompt_tokens", "message"),
    [
        ({"max_tokens": 1}, [], "no tokens"),
        ({"max_tokens": 1}, [99_999], "vocabulary"),
        ({"max_tokens": 1}, [1] * 4097, "context holds 4096"),
    ],
)
def test_a_prompt_that_cannot_be_served_fails_with_the_reason(base, params, prompt_tokens, message: str) -> None:
    with pytest.raises(tinker.RequestFailedError, match=message):
        draw(base, prompt_tokens, **params)


@pytest.mark.parametrize(
    "options", [{"topk_prompt_logprobs": 2}, {"topk_sample_logprobs": 2}, {"prompt_alt_tokens_k": 1}]
)
def test_what_is_not_served_is_refused(base, prompt: list[int], options: dict[str, int]) -> None:
    with pytest.raises(tinker.BadRequestError, match="is not served here"):
        base.sample(ModelInput.from_ints(prompt), 1, SamplingParams(max_tokens=1), **options).result()


def test_the_context_ends_a_sequence() -> None:
    model = Base(str(MODEL_DIRECTORY), "cpu")
    model.max_length = 8
    for limit in (None, 100):
        (output,) = sample(model, [SampleQuery((1, 5, 6), max_tokens=limit, stop_at_eos=False)])
        assert (len(output.sequences[0].tokens), output.sequences[0].stopped) == (5, False)
    (full,) = sample(model, [SampleQuery(tuple(range(8)), max_tokens=1, prompt_logprobs=8)])
    assert np.isfinite(full.prompt_logprobs[1:]).all()


def test_draws_follow_the_distribution_that_the_options_name() -> None:
    """Inverting the distribution function on an even grid gives each token its probability, to within the grid."""
    logits = torch.tensor([0.2, 1.4, -1.0, 2.0, 0.0])
    grid = (np.arange(20_000) + 0.5) / 20_000
    rows = logits.expand(len(grid), -1)
    for options in ({}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.9}):
        query = SampleQuery((1,), **options)
        drawn = np.bincount(_choose(rows, query, grid).numpy(), minlength=5) / len(grid)
        np.testing.assert_allclose(drawn, expected_distribution(logits.numpy(), **options), atol=1e-3)


def expected_distribution(logits, temperature: float = 1.0, top_k: int = 5, top_p: float = 1.0):
    """By the definitions: the likeliest top_k, of them the fewest that reach top_p, renormalized."""
    probabilities = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    order = np.argsort(-probabilities)[:top_k]
    kept = probabilities[order] / probabilities[order].sum()
    order = order[: int(np.searchsorted(np.cumsum(kept), top_p - 1e-12)) + 1]
    result = np.zeros_like(probabilities)
    result[order] = probabilities[order] / probabilities[order].sum()
    return result


def test_prompts_drawn_together_are_drawn_as_alone(base, prompt: list[int]) -> None:
    """Queries of other lengths, counts and settings do not change what one draws."""
    model = Base(str(MODEL_DIRECTORY), "cpu")
    queries = [
        SampleQuery(tuple(prompt), 2, max_tokens=12, temperature=1.3, seed=1),
        SampleQuery(tuple(prompt[:3]), 1, max_tokens=3, temperature=0.0, prompt_logprobs=3),
        SampleQuery((7,), 3, max_tokens=20, temperature=0.9, top_p=0.8, seed=2, stop_at_eos=False),
        SampleQuery(tuple(prompt[::-1]), 1, max_tokens=9, top_k=5, seed=3, prompt_logprobs=4),
    ]
    together = sample(model, queries)
    for query, ours in zip(queries, together, strict=True):
        (alone,) = sample(model, [query])
        assert [s.tokens.tolist() for s in ours.sequences] == [s.tokens.tolist() for s in alone.sequences]
        for mine, theirs in zip(ours.sequences, alone.sequences, strict=True):
            np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-4)
            assert mine.stopped == theirs.stopped
        if query.prompt_logprobs:
            np.testing.assert_allclose(ours.prompt_logprobs, alone.prompt_logprobs, atol=1e-4)


def test_waiting_queries_are_drawn_in_one_go_and_a_bad_one_fails_alone() -> None:
    model = Base(str(MODEL_DIRECTORY), "cpu")
    gathering, drawn = Gathering(model), []

    def draw(queries):
        drawn.append([query.prompt for query in queries])
        return sample(model, queries)

    prompts = [(5, 6), (9_999,), (7,), (8, 9, 10)]
    for number, tokens in enumerate(prompts):
        gathering.add(number, SampleQuery(tokens, max_tokens=2, temperature=0))
    outputs = {}
    for number in (2, 0, 3):
        outputs[number] = gathering.take(number, draw)
    with pytest.raises(RequestError, match="outside this model's vocabulary"):
        gathering.take(1, draw)
    assert drawn == [[(7,), (5, 6), (8, 9, 10)], [(9_999,)]]
    for number, output in outputs.items():
        (alone,) = sample(model, [SampleQuery(prompts[number], max_tokens=2, temperature=0)])
        assert output.sequences[0].tokens.tolist() == alone.sequences[0].tokens.tolist()
