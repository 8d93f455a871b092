"""Attention over packed rows is that of each row alone, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch

from tinker_utils.local.engine import attention

HEADS, GROUPS, WIDTH = 6, 2, 8


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One row in float64: q [T, heads, d], k and v [T, groups, d] → [T, heads · d]."""
    length, heads, width = q.shape
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(heads // len(x), 0) for x in (k, v))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k.mT / width**0.5).masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, heads * width)


@pytest.mark.parametrize(
    "lengths",
    [(1,), (3, 3, 2), (127, 128, 129), (128, 128), (300, 300, 257, 40), (1024, 1025)],
    ids=lambda lengths: "+".join(map(str, lengths)),
)
def test_values_and_gradients_are_those_of_each_row_alone(lengths: tuple[int, ...]):
    random = torch.Generator().manual_seed(len(lengths))
    q, k, v, gradient = (
        torch.randn(sum(lengths), heads, WIDTH, generator=random) for heads in (HEADS, GROUPS, GROUPS, HEADS)
    )
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = torch.cat([plain(*row) for row in zip(*(x.split(lengths) for x in leaves), strict=True)])
    wanted.backward(gradient.flatten(1).double())

    rows = attention.segments(lengths)
    found, saved = attention.attend(q, k, v, rows)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    for leaf, part in zip(leaves, attention.attend_backward(gradient.flatten(1), rows, saved), strict=True):
        torch.testing.assert_close(part, leaf.grad, rtol=0, atol=2e-5)


def test_rows_are_taken_in_blocks_where_that_is_faster():
    def kind(length: int) -> str:
        x = torch.zeros(length, GROUPS, WIDTH)
        return type(attention.attend(x, x, x, attention.segments([length]))[1][0]).__name__

    longest = attention.MAX_IN_BLOCKS
    assert [kind(length) for length in (127, 128, longest, longest + 1)] == ["_Fused", "_Blocks", "_Blocks", "_Fused"]
