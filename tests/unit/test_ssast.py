import pytest
import torch
from made import built_ssast
from torch import nn

from peas.errors import ConfigError, NoReconstruction
from peas.models.patches import resize_positions


@pytest.fixture(scope="module")
def fine_tuning():
    torch.manual_seed(0)
    return built_ssast("tiny", num_classes=7, frames=128, stride=(10, 10)).eval()


@pytest.mark.parametrize(
    ("size", "width", "millions"),
    [("tiny", 192, 6.046), ("small", 384, 22.854), ("base", 768, 88.763)],
)
def test_sizes(size, width, millions):
    """Parameters as the official models count them, less their two unused 1000-way heads."""
    with torch.device("meta"):
        model = built_ssast(size)
    count = sum(value.numel() for value in model.parameters()) + 2 * 1000 * (width + 1) + 2
    assert count == pytest.approx(millions * 1e6, abs=500)
    assert model.encoder.pos_embed.shape == (1, 514, width)


@pytest.mark.parametrize(
    ("frames", "patch", "stride", "tokens"),
    [(128, (16, 16), (10, 10), 144), (128, (16, 16), (16, 16), 64), (128, (128, 2), (128, 1), 127)],
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_forward(frames, patch, stride, tokens, pooling):
    model = built_ssast(
        "tiny", num_classes=5, frames=frames, patch=patch, stride=stride, pooling=pooling
    )
    x = torch.randn(2, frames, 128)
    found = model.forward_features(x)
    assert found.shape == (2, 2 + tokens, 192)
    pooled = found[:, 2:].mean(1) if pooling == "mean" else (found[:, 0] + found[:, 1]) / 2
    wanted = model.head(nn.functional.layer_norm(pooled, (192,), eps=1e-5))
    torch.testing.assert_close(model(x), wanted)


@torch.no_grad()
def test_without_classes_forward_gives_embeddings():
    model = built_ssast("tiny", frames=64)
    assert model(torch.randn(2, 64, 128)).shape == (2, 192)


@torch.no_grad()
def test_sixty_four_mel_bins():
    model = built_ssast("tiny", num_classes=3, frames=128, mels=64, stride=(10, 10))
    x = torch.randn(1, 128, 64)
    assert model(x).shape == (1, 3)
    assert model.reconstruct(x).shape == x.shape


def test_wrong_shape_and_settings(fine_tuning):
    with pytest.raises(ConfigError, match=r"\[B, 128, 128\].*\[1, 100, 128\]"):
        fine_tuning(torch.zeros(1, 100, 128))
    with pytest.raises(ConfigError, match="tiny, small, base"):
        built_ssast("huge")
    with pytest.raises(ConfigError, match="pooling"):
        built_ssast("tiny", pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="grid"):
        fine_tuning.reconstruct(torch.zeros(1, 128, 128), grid="other")  # type: ignore[arg-type]


def naive_reconstruction(model, x, table, hidden=None):
    """G(E(x)) patch by patch and clip by clip, with nothing but plain modules."""
    kernel, bias = model.encoder.patch_embed.proj.weight, model.encoder.patch_embed.proj.bias
    drawn = torch.zeros_like(x)
    for clip in range(len(x)):
        places = [(f, t) for f in range(0, 128, 16) for t in range(0, x.shape[1], 16)]
        rows = [model.encoder.cls_token[0, 0], model.encoder.dist_token[0, 0]]
        for index, (f, t) in enumerate(places):
            cells = x[clip, t : t + 16, f : f + 16].T
            row = (kernel[:, 0] * cells).sum((1, 2)) + bias
            if hidden is not None and hidden[clip, index]:
                row = model.mask_embed[0, 0]
            rows.append(row)
        tokens = torch.stack(rows)[None] + table
        for block in model.encoder.blocks:
            attention, size = block.attn, tokens.shape[1]
            q, k, v = (
                part.reshape(1, size, 3, 64).transpose(1, 2)
                for part in attention.qkv(block.norm1(tokens)).chunk(3, dim=2)
            )
            weights = (q @ k.transpose(2, 3) / 8).softmax(-1)
            tokens = tokens + attention.proj((weights @ v).transpose(1, 2).reshape(1, size, 192))
            inner = nn.functional.gelu(block.mlp.fc1(block.norm2(tokens)))
            tokens = tokens + block.mlp.fc2(inner)
        tokens = nn.functional.layer_norm(
            tokens, (192,), model.encoder.norm.weight, model.encoder.norm.bias, 1e-6
        )
        for (f, t), token in zip(places, tokens[0, 2:], strict=True):
            first, _, second = model.generative_head
            cells = second(first(token).clamp_min(0)).reshape(16, 16)
            drawn[clip, t : t + 16, f : f + 16] = cells.T
    return drawn


@torch.no_grad()
def test_peas_errors_against_a_naive_loop(fine_tuning):
    x = torch.randn(2, 96, 128)
    table = resize_positions(fine_tuning.pretrain_pos_embed, 2, (8, 64), (8, 6))
    rec = (fine_tuning.reconstruct(x) - x).square()
    wanted = (naive_reconstruction(fine_tuning, x, table) - x).square()
    torch.testing.assert_close(rec, wanted, rtol=0, atol=1e-5)
    pred = (fine_tuning.reconstruct(rec) - rec).square()
    wanted = (naive_reconstruction(fine_tuning, rec, table) - rec).square()
    torch.testing.assert_close(pred, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hidden_patches_are_not_seen(fine_tuning):
    x, hidden = torch.randn(2, 64, 128), torch.rand(2, 32) < 0.5
    table = resize_positions(fine_tuning.pretrain_pos_embed, 2, (8, 64), (8, 4))
    found = fine_tuning.reconstruct(x, hidden)
    wanted = naive_reconstruction(fine_tuning, x, table, hidden)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_ragged_length_is_padded_with_zeros(fine_tuning):
    x = torch.randn(1, 50, 128)
    longer = torch.cat((x, torch.zeros(1, 14, 128)), dim=1)
    assert torch.equal(fine_tuning.reconstruct(x), fine_tuning.reconstruct(longer)[:, :50])


@torch.no_grad()
def test_finetuning_grid(fine_tuning):
    """Uncovered cells keep the input; the rest is the mean over the patches that draw them."""
    x = torch.randn(2, 128, 128)
    drawn = fine_tuning.reconstruct(x, grid="finetune")
    time, freq = fine_tuning.coverage(128, "finetune")
    cells = time[:, None] & freq
    assert (time.sum(), freq.sum()) == (126, 126)
    assert torch.equal(drawn[:, ~cells], x[:, ~cells])
    patches = fine_tuning.generative_head(fine_tuning.forward_features(x)[:, 2:])
    patches = patches.reshape(2, 12, 12, 16, 16)
    torch.testing.assert_close(drawn[:, 3, 5], patches[:, 0, 0, 5, 3])
    wanted = (patches[:, 0, 2, 5, 3] + patches[:, 0, 1, 5, 13]) / 2
    torch.testing.assert_close(drawn[:, 23, 5], wanted)
    assert fine_tuning.reconstruct(x[:, :100], grid="finetune").shape == (2, 100, 128)
    assert all(line.all() for line in fine_tuning.coverage(128))


@torch.no_grad()
def test_frozen_and_live_positions():
    """A pretraining model draws with the table it trains; a fine-tuning one with the frozen one."""
    x = torch.randn(1, 64, 128)
    live = built_ssast("tiny", frames=64)
    before = live.reconstruct(x)
    live.pretrain_pos_embed.add_(1)
    assert torch.equal(live.reconstruct(x), before)
    live.encoder.pos_embed.add_(1)
    assert not torch.equal(live.reconstruct(x), before)
    frozen = built_ssast("tiny", num_classes=2, frames=64, pretrain=(64, 128))
    before = frozen.reconstruct(x)
    frozen.encoder.pos_embed.add_(1)
    assert torch.equal(frozen.reconstruct(x), before)
    frozen.pretrain_pos_embed.add_(1)
    assert not torch.equal(frozen.reconstruct(x), before)


def test_gradients():
    """In fine-tuning every trainable parameter gets one, and the pretraining heads none."""
    model = built_ssast("tiny", num_classes=3, frames=64, stride=(10, 10))
    model(torch.randn(2, 64, 128)).sum().backward()
    idle = ("mask_embed", "contrastive_head", "generative_head")
    for key, value in model.named_parameters():
        assert value.requires_grad != key.startswith(idle), key
        assert (value.grad is not None) == value.requires_grad, key
    assert all(value.requires_grad for value in built_ssast("tiny", frames=64).parameters())


@pytest.mark.parametrize(
    ("grid", "frames", "wanted"),
    [("nonoverlap", 50, (8, 4)), ("nonoverlap", 64, (8, 4)), ("finetune", 128, (12, 12))],
)
@torch.no_grad()
def test_token_grid_is_what_reconstruct_hides(fine_tuning, grid, frames, wanted):
    assert fine_tuning.token_grid(frames, grid) == wanted
    hidden = torch.ones(1, wanted[0] * wanted[1], dtype=torch.bool)
    a, b = (fine_tuning.reconstruct(torch.randn(1, frames, 128), hidden, grid=grid) for _ in "ab")
    assert torch.equal(a[..., :126, :126], b[..., :126, :126]), "hidden cells were seen"


def test_no_trained_head(fine_tuning):
    fine_tuning.reconstructs.fill_(False)
    try:
        with pytest.raises(
            NoReconstruction,
            match=r"no trained pixel head.*`model\.init_args\.reconstruction: probe`",
        ):
            fine_tuning.reconstruct(torch.zeros(1, 64, 128))
    finally:
        fine_tuning.reconstructs.fill_(True)


def test_state_names_its_own_pretraining_shape():
    """A table of another pretraining shape is taken; another input shape is refused."""
    source = built_ssast("tiny", num_classes=2, frames=64, pretrain=(256, 128))
    model = built_ssast("tiny", num_classes=2, frames=64)
    model.load_state_dict(source.state_dict())
    assert torch.equal(model.pretrain_pos_embed, source.pretrain_pos_embed)
    assert model.pretraining_grid == (8, 16)
    with pytest.raises(RuntimeError, match="frames, mels, stride"):
        built_ssast("tiny", num_classes=2, frames=80).load_state_dict(source.state_dict())


def test_drop_path_rises_to_its_rate():
    model = built_ssast("tiny", frames=64, drop_path=0.2)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.encoder.blocks]
    assert rates == pytest.approx([0.2 * index / 11 for index in range(12)])
