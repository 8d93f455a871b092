from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tinker_utils.batching import Batch, BatchPlan, Example, Mixture, epoch_order, in_batches


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


def test_shares_are_exactly_those_of_the_weights():
    # 40 and 20 conversations, one to three: six units of one and three are all that 20 have.
    assert Mixture.of([40, 20], [1, 3]).draws == (6, 18)
    assert Mixture.of([1000, 1000, 1000], [0.5, 0.3, 0.2]).draws == (1000, 600, 400)
    assert Mixture.of([100, 1000], [0.7, 0.3]).draws == (98, 42), "14 units of 7 and 3"
    # 10 of at most 20 are a limit's half; without weights each gives all that it may.
    assert Mixture.of([40, 20], [1, 1], [10, None]).draws == (10, 10)
    assert Mixture.of([40, 20], None, [None, 5]).draws == (40, 5)
    # 355 and 113 are no unit that 100 conversations hold: 100 · 113 / 355 = 31.8.
    assert Mixture.of([100, 100], [355, 113]).draws == (100, 32)


def test_an_epoch_draws_anew_and_takes_none_twice():
    mixture = Mixture.of([40, 20], [1, 3])
    epochs = [mixture.order(7, epoch) for epoch in (1, 2, 3)]
    for order in epochs:
        assert Counter(mixture.source_of(order).tolist()) == {0: 6, 1: 18}
        assert len(set(order.tolist())) == 24
    assert len({tuple(sorted(order.tolist())) for order in epochs}) == 3, "each epoch has others"
    assert mixture.order(7, 2).tolist() == epochs[1].tolist(), "and the same ones when it is asked for again"
    sources = mixture.source_of(epochs[0]).tolist()
    assert sources != sorted(sources), "the sources are mixed"


def test_all_of_several_sources_are_in_the_order_of_one():
    assert Mixture.of([4, 6]).order(0, 1).tolist() == epoch_order(10, 0, 1).tolist()


def test_a_batch_knows_its_sources():
    conversations = [(example(3 + i, 1),) for i in range(10)]
    batches = BatchPlan(conversations, 4, 0, 2, mixture=Mixture.of([6, 4], [1, 1]))
    assert (batches.steps_per_epoch, batches.total_steps) == (2, 4)
    for step in range(1, 5):
        batch, rows = batches.batch(step), batches.indices(step)
        assert batch.sources == tuple(int(row >= 6) for row in rows.tolist())
        assert [each.token_count for each in batch.data] == [3 + row for row in rows.tolist()]
