import pytest
import torch
from timm.layers import Attention

from peas.models.vit import SelfAttention


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_equals_timms_forward_and_backward(causal: bool) -> None:
    torch.manual_seed(0)
    theirs = Attention(24, num_heads=3, qkv_bias=True)
    ours = SelfAttention(theirs.qkv, theirs.proj, heads=3)
    tokens = torch.randn(2, 7, 24, requires_grad=True)
    upstream = torch.randn(2, 7, 24)
    results = []
    for attention in (theirs, ours):
        out = attention(tokens, is_causal=causal)
        wanted = (tokens, *attention.parameters())
        results.append((out, *torch.autograd.grad(out, wanted, upstream)))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_self_attention_keeps_timms_names() -> None:
    theirs = Attention(24, num_heads=3, qkv_bias=True)
    ours = SelfAttention(theirs.qkv, theirs.proj, heads=3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
