"""What an upgrade of PyTorch has broken: each operator against the public function that it is below."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.local_service import MODEL_DIRECTORY
from torch.nn import functional

from tinker_utils.local.engine import compat

BROKEN = f"torch {torch.__version__} has changed: mend tinker_utils/local/engine/compat.py."


@pytest.fixture
def tensors():
    made = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 8, generator=made, requires_grad=True) for _ in range(3)]


def test_attention_and_its_gradients_are_those_of_the_public_function(tensors):
    expected = functional.scaled_dot_product_attention(*tensors, is_causal=True)
    gradient = torch.full_like(expected, 0.5)
    wanted = torch.autograd.grad(expected, tensors, gradient)
    plain = [tensor.detach() for tensor in tensors]
    out, logsumexp = compat.flash_attention_on_cpu(*plain)
    torch.testing.assert_close(out, expected.detach(), msg=BROKEN)
    found = compat.flash_attention_on_cpu_backward(gradient, *plain, out, logsumexp)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, msg=BROKEN)


def test_the_gradient_of_silu_is_that_of_the_public_function(tensors):
    x, gradient = tensors[0], tensors[1].detach()
    (wanted,) = torch.autograd.grad(functional.silu(x), x, gradient)
    out = torch.empty_like(gradient)
    compat.silu_backward(gradient, x.detach(), out)
    torch.testing.assert_close(out, wanted, msg=BROKEN)


def test_a_decoder_takes_its_cache_by_the_name_that_it_has():
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIRECTORY)
    decoder = model.get_decoder()
    cache = transformers.DynamicCache(config=model.config)
    name = compat.cache_argument(type(decoder).forward)
    decoder(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True, **{name: cache})
    assert cache.get_seq_length() == 3, f"transformers {transformers.__version__} has renamed the cache once more"
