from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tinker_utils.batching import Batch, BatchPlan, Example, epoch_order, in_batches


def example(length: int, completion: int) -> Example:
    weights = np.zeros(length, dtype=np.float32)
    weights[length - completion :] = 1
    return Example(np.arange(length + 1, dtype=np.int32), weights)


def plan(examples: int = 10, batch_size: int = 4, epochs: int = 3, seed: int = 0) -> BatchPlan:
    return BatchPlan([(example(3 + i, 1 + i % 3),) for i in range(examples)], batch_size, seed, epochs)


def test_inputs_and_targets_are_shifted_by_one():
    one = example(3, 1)
    assert one.input_tokens.tolist() == [0, 1, 2]
    assert one.target_tokens.tolist() == [1, 2, 3]
    assert (one.token_count, one.completion_tokens) == (3, 1)


def test_weights_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one weight fewer"):
        Example(np.arange(3, dtype=np.int32), np.ones(3, dtype=np.float32))


def test_a_batch_knows_its_tokens():
    batch = Batch((example(5, 2), example(7, 3)))
    assert (len(batch.data), batch.tokens, batch.completion_tokens) == (2, 12, 5)


def test_normalized_weights_sum_to_one_over_the_whole_batch():
    weights = Batch((example(5, 1), example(7, 3))).normalized_weights()
    assert [w[w > 0].tolist() for w in weights] == [[0.25], [0.25] * 3]


def test_each_epoch_sees_every_example_once_and_the_last_batch_is_smaller():
    run = plan()
    assert (run.steps_per_epoch, run.total_steps) == (3, 9)
    for epoch in (1, 2, 3):
        steps = [step for step in range(1, 10) if run.epoch_of(step) == epoch]
        sizes = [len(run.batch(step).data) for step in steps]
        assert sizes == [4, 4, 2]
        assert Counter(i for step in steps for i in run.indices(step)) == Counter(range(10))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    assert epoch_order(100, 0, 1).tolist() == epoch_order(100, 0, 1).tolist()
    orders = {tuple(epoch_order(100, seed, epoch)) for seed in range(3) for epoch in range(1, 4)}
    assert len(orders) == 9


def test_order_is_pinned_so_that_a_resumed_run_sees_it_again():
    # The ranks of PCG64's raw output under SeedSequence([0, 1]), sorted here by another route.
    raw = np.random.PCG64(np.random.SeedSequence([0, 1])).random_raw(6).tolist()
    assert epoch_order(6, 0, 1).tolist() == sorted(range(6), key=raw.__getitem__)


def test_every_example_takes_every_place():
    """Sorting independent keys is uniform: each of 4 examples is first in about a quarter of many epochs."""
    first = Counter(int(epoch_order(4, 0, epoch)[0]) for epoch in range(1, 2001))
    assert all(abs(count - 500) < 5 * (2000 * 0.25 * 0.75) ** 0.5 for count in first.values())


def test_an_evaluation_keeps_the_order_and_leaves_nothing_out():
    examples = [example(3, 1) for _ in range(5)]
    assert [each for batch in in_batches(examples, 2) for each in batch.data] == examples
