"""Windows of the local decoder against loops over windows and against timm's Swin V2 block."""

import pytest
import torch
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock
from torch.nn import functional

from peas.models.local_attention import LocalBlocks, WindowMap

CLOSE = {"rtol": 0, "atol": 1e-10}


def stirred(module, seed=0):
    """Weights that hide no error: no norm is plain, no temperature is 1. In float64."""
    module.double()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(
                torch.randn(p.shape, generator=source, dtype=p.dtype) * (0.3 if p.ndim > 1 else 0.2)
            )
            if name.endswith("tau"):
                p.copy_(0.05 + 1.45 * torch.rand(p.shape, generator=source, dtype=p.dtype))
                p[0] = 0.001  # Below the least that is allowed.
            elif "norm" in name and name.endswith("weight"):
                p.add_(1)
    return module.eval()


def looped(block, tokens, grid, window, shift):
    """One block a window, a head and a clip at a time, written from the definition."""
    high, wide = (min(window, side) for side in grid)
    batch, _, width = tokens.shape
    attn = block.attn
    field = tokens.view(batch, *grid, width)
    # Windows begin at the shift; what lies before it is joined with the end, but kept apart.
    places = [[(t, f) for f in range(grid[1])] for t in range(grid[0])]
    order = [places[(t + shift) % grid[0]] for t in range(grid[0])]
    out = torch.zeros_like(field)
    for first in range(0, grid[0], high):
        for left in range(0, grid[1], wide):
            cells = [order[first + a][left + b] for a in range(high) for b in range(wide)]
            inside = [(a, b) for a in range(high) for b in range(wide)]
            side = [first + a + shift >= grid[0] for a, _ in inside]
            x = torch.stack([field[:, t, f] for t, f in cells], dim=1)
            q, k, v = functional.linear(x, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=-1)
            heads = []
            for head in range(attn.heads):
                part = slice(head * width // attn.heads, (head + 1) * width // attn.heads)
                logits = tokens.new_zeros(batch, len(cells), len(cells))
                for i, a in enumerate(inside):
                    for j, b in enumerate(inside):
                        d = tokens.new_tensor([float(a[0] - b[0]), float(a[1] - b[1])])
                        place = (d.sign() * d.abs().float().log1p()).to(tokens)
                        near = functional.cosine_similarity(q[:, i, part], k[:, j, part], dim=-1)
                        logits[:, i, j] = (
                            near / max(float(attn.tau[head]), 0.01)
                            + attn.meta_mlp(place)[head]
                            + (-100.0 if side[i] != side[j] else 0.0)
                        )
                heads.append(logits.softmax(dim=-1) @ v[..., part])
            mixed = attn.proj(torch.cat(heads, dim=-1))
            for index, (t, f) in enumerate(cells):
                out[:, t, f] = mixed[:, index]
    rows = field + block.norm1(out)
    return (rows + block.norm2(block.mlp(rows))).view_as(tokens)


@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_blocks_are_a_loop_over_windows_and_heads(shifted):
    blocks = stirred(LocalBlocks(16, 1, 2, first_shift=int(shifted)))
    tokens = torch.randn(2, 32, 16, dtype=torch.float64)
    ours = blocks(tokens, (8, 4))
    naive = looped(blocks[0], tokens, (8, 4), 4, 2 if shifted else 0)
    torch.testing.assert_close(ours, naive, **CLOSE)


@torch.no_grad()
def test_blocks_in_a_row_are_the_blocks_one_by_one():
    blocks = stirred(LocalBlocks(16, 4, 2))
    tokens = torch.randn(2, 64, 16, dtype=torch.float64)
    expected = tokens
    for index, block in enumerate(blocks):
        expected = looped(block, expected, (16, 4), 4, 2 * (index % 2))
    torch.testing.assert_close(blocks(tokens, (16, 4)), expected, **CLOSE)


def timms(block, grid, shift):
    """timm's Swin V2 block with the weights of ours, and a mask that is made by hand."""
    width, heads = block.attn.proj.out_features, block.attn.heads
    theirs = SwinTransformerV2CrBlock(width, heads, grid, (4, 4), (0, 0), init_values=None)
    theirs.double()
    named = {
        **{f"attn.{name}": value for name, value in block.attn.state_dict().items()},
        **{f"norm1.{name}": value for name, value in block.norm1.state_dict().items()},
        **{f"norm2.{name}": value for name, value in block.norm2.state_dict().items()},
        **{f"mlp.{name}": value for name, value in block.mlp.state_dict().items()},
    }
    tau = named.pop("attn.tau").clamp(min=0.01)
    # timm multiplies by the exponential of what it learns.
    named["attn.logit_scale"] = tau.reciprocal().log()
    missing, unexpected = theirs.load_state_dict(named, strict=False)
    assert not unexpected
    assert not [name for name in missing if "norm3" not in name]
    for norm in (theirs.norm1, theirs.norm2):
        norm.eps = 1e-6
    if any(shift):
        theirs.shift_size = shift
        region = torch.zeros(grid)
        region[-4 : -shift[0]], region[-shift[0] :] = 1, 2
        parts = region.view(grid[0] // 4, 4, grid[1] // 4, 4).transpose(1, 2).reshape(-1, 16)
        theirs.attn_mask = torch.where(parts[:, :, None] == parts[:, None], 0.0, -100.0)
    theirs.eval()
    # The same places to the last bit of float32, in which both tables are made.
    made = theirs.attn.relative_coordinates_log.float()
    relative = LocalBlocks(width, 1, heads).placed(grid, False, torch.device("cpu")).relative
    torch.testing.assert_close(made, relative.view(-1, 2), rtol=0, atol=2e-7)
    theirs.attn.relative_coordinates_log = relative.view(-1, 2).double()
    return theirs


@pytest.mark.parametrize("shift", [(0, 0), (2, 0)])
def test_block_is_timms_swin_v2_with_its_gradients(shift):
    blocks = LocalBlocks(32, 1, 4, first_shift=shift[0] // 2)
    block = stirred(blocks)[0]
    grid = (16, 8)
    theirs = timms(block, grid, shift)
    tokens = torch.randn(2, 128, 32, dtype=torch.float64)
    ours, other = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    y = blocks(ours, grid)
    field = other.view(2, *grid, 32)
    z = theirs(field).reshape(2, 128, 32)
    torch.testing.assert_close(y, z, rtol=0, atol=1e-9)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-5, atol=1e-6)
    of_theirs = dict(theirs.named_parameters())
    # A constant of each head cancels in the softmax: fc2's bias has no gradient but noise.
    for name, p in block.named_parameters():
        if name in ("attn.tau", "attn.meta_mlp.fc2.bias"):
            continue
        error = (p.grad - of_theirs[name].grad).norm() / of_theirs[name].grad.norm()
        assert error < 1e-5, name
    scale = of_theirs["attn.logit_scale"].grad
    tau = block.attn.tau
    expected = torch.where(tau > 0.01, -scale / tau, torch.zeros_like(tau))
    torch.testing.assert_close(tau.grad, expected, rtol=1e-5, atol=1e-6)


def test_shift_mask_of_ten_seconds():
    """F2 of the notes: 32 windows of 16 x 16, two values, two windows touched."""
    windows = WindowMap((64, 8), 4, (2, 0))
    assert windows.mask.shape == (32, 16, 16)
    assert set(windows.mask.unique().tolist()) == {-100.0, 0.0}
    assert int((windows.mask != 0).flatten(1).any(dim=1).sum()) == 2
    assert WindowMap((64, 8), 4).mask is None


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((64, 8), 4, (2, 0)),
        ((101, 12), 6, (2, 0)),
        ((25, 8), 4, (0, 0)),
        ((4, 8), 4, (2, 0)),
        ((3, 2), 4, (2, 0)),
    ],
)
def test_every_token_lies_in_one_cell_and_comes_back(grid, window, shift):
    windows = WindowMap(grid, window, shift)
    count = grid[0] * grid[1]
    real = windows.index[windows.index < count]
    assert torch.equal(real.sort().values, torch.arange(count))
    assert torch.equal(windows.index.flatten()[windows.back], torch.arange(count))
    if grid[0] <= window:
        # A window as long as the grid has nothing to be shifted against.
        assert windows.mask is None


@pytest.mark.parametrize("grid", [(101, 12), (25, 8), (6, 3)])
@torch.no_grad()
def test_fillers_of_a_grid_that_does_not_divide_are_attended_by_nobody(grid):
    blocks = stirred(LocalBlocks(16, 3, 2, window=4))
    tokens = torch.randn(1, grid[0] * grid[1], 16, dtype=torch.float64)
    out = blocks(tokens, grid)
    assert out.shape == tokens.shape
    # A token outside the windows of another one is without influence in one block.
    one = stirred(LocalBlocks(16, 1, 2, window=4))
    moved = tokens.clone()
    moved[:, -1] += 10
    changed = ((one(moved, grid) - one(tokens, grid)).abs().amax(dim=2) > 1e-7)[0].nonzero()
    in_window = one.placed(grid, False, tokens.device).index
    mates = next(row for row in in_window if (row == tokens.shape[1] - 1).any())
    assert set(changed.flatten().tolist()) <= set(mates.tolist())


@torch.no_grad()
def test_half_precision_is_near_and_a_zero_token_is_finite():
    blocks = LocalBlocks(32, 4, 4).eval()
    tokens = torch.randn(2, 64, 32)
    full = blocks(tokens, (8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        half = blocks(tokens, (8, 8))
    assert (full - half).abs().mean() < 0.01 * full.abs().mean()
    for p in blocks.parameters():
        p.zero_()
    tokens.zero_()
    assert blocks(tokens, (8, 8)).isfinite().all()


def test_gradient_of_a_zero_token_is_finite():
    block = LocalBlocks(16, 1, 2)
    with torch.no_grad():
        block[0].attn.qkv.bias.zero_()
    tokens = torch.zeros(1, 16, 16, requires_grad=True)
    block(tokens, (4, 4)).sum().backward()
    assert tokens.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_dropout_of_the_bias_acts_in_training_alone():
    blocks = LocalBlocks(16, 1, 2)
    tokens = torch.randn(1, 16, 16)
    drawn = [blocks.train()(tokens, (4, 4)) for _ in range(2)]
    still = [blocks.eval()(tokens, (4, 4)) for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(*still)


def test_windows_made_in_an_evaluation_serve_training():
    blocks = LocalBlocks(16, 2, 2)
    tokens = torch.randn(1, 32, 16)
    with torch.inference_mode():
        blocks(tokens, (8, 4))
    blocks(tokens, (8, 4)).sum().backward()
    assert all(p.grad is not None for p in blocks.parameters())


@pytest.mark.parametrize("grid", [(8, 4), (7, 3)])
@torch.no_grad()
def test_blocks_are_one_graph_for_the_compiler(grid):
    blocks = LocalBlocks(16, 3, 2).eval()
    tokens = torch.randn(1, grid[0] * grid[1], 16)
    traced = torch.compile(blocks, backend="eager", fullgraph=True)
    expected = LocalBlocks(16, 3, 2).eval()
    expected.load_state_dict(blocks.state_dict())
    for _ in range(2):
        torch.testing.assert_close(traced(tokens, grid), expected(tokens, grid))
