"""AudioMAE's model: grids, order of tokens, masking, gradients, drawing, and what is refused."""

import pytest
import torch
import toys  # noqa: F401 - the size `toy`
from made import built_audiomae
from torch.nn import functional

from peas.errors import ConfigError, NoReconstruction
from peas.masking.patches import random_patches, time_freq_mask
from peas.models.audiomae import decoder_of, normalised
from peas.models.audiomae_layers import DecoderShape
from peas.models.patches import visible_indices
from peas.objectives import masked_patch_error

LOCAL, GLOBAL = DecoderShape("local", 32, 2, 2), DecoderShape("global", 32, 2, 2)


def build(frames=128, decoder=LOCAL, **settings):
    torch.manual_seed(0)
    return built_audiomae("toy", frames=frames, decoder=decoder, **settings).eval()


def parameters(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_numbers_of_weights_are_the_official_ones():
    with torch.device("meta"):
        for size, decoder, classes, count in (
            ("base", DecoderShape(), 0, 136_336_128),
            ("base", DecoderShape("global", depth=8), 0, 110_999_808),
            ("small", DecoderShape(), 0, 72_278_784),
            ("large", DecoderShape(), 0, 353_788_672),
            # The note counts the table of positions, 513 x 768, which is fixed.
            ("base", None, 0, 85_648_128 - 513 * 768),
            ("base", None, 527, 85_659_407),
        ):
            model = built_audiomae(size, num_classes=classes, decoder=decoder)
            assert parameters(model) == count, size


@pytest.mark.parametrize(("ratio", "visible"), [(0.8, 102), (0.4, 307), (0.2, 409)])
def test_counts_of_ten_seconds(ratio, visible):
    hidden = random_patches(torch.rand(3, 512), int(512 * (1 - ratio)))
    assert hidden.sum(dim=1).tolist() == [512 - visible] * 3
    assert visible_indices(hidden).shape == (3, visible)


def test_fine_tuning_keeps_306_of_512():
    hidden = time_freq_mask(torch.rand(2, 64), torch.rand(2, 8), int(64 * 0.8), int(8 * 0.8))
    assert (~hidden).flatten(1).sum(dim=1).tolist() == [306, 306]


def test_patch_5_3_is_token_43():
    model = build(1024)
    log_mel = torch.zeros(1, 1024, 128)
    log_mel[:, 5 * 16 : 6 * 16, 3 * 16 : 4 * 16] = 1
    lit = model.encoder.patches(log_mel).sum(dim=2)[0].nonzero().flatten()
    assert lit.tolist() == [43]
    drawn = build(1024, norm_pix=False)
    with torch.no_grad():
        drawn.decoder.pred.weight.zero_()
        drawn.decoder.pred.bias.copy_(torch.arange(256.0))
        cell = drawn.reconstruct(log_mel)[0, 5 * 16 : 6 * 16, 3 * 16 : 4 * 16]
    # Inside a patch the rows are time.
    assert torch.equal(cell, torch.arange(256.0).view(16, 16))


def test_patches_are_the_convolutions():
    for stride in (None, (10, 10)):
        model = build(stride=stride)
        x = torch.randn(2, 128, 128)
        proj = model.encoder.patch_embed.proj
        expected = functional.conv2d(
            x[:, None], proj.weight, proj.bias, stride=stride or 16
        ).flatten(2)
        ours = functional.linear(model.encoder.patches(x), proj.weight.flatten(1), proj.bias)
        torch.testing.assert_close(ours, expected.transpose(1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "stride", "decoder", "grid"),
    [
        (1024, None, LOCAL, (8, 64)),
        (1024, (10, 10), LOCAL._replace(window=6), (12, 101)),
        (1024, None, GLOBAL, (8, 64)),
        (512, None, LOCAL, (8, 32)),
        (400, None, LOCAL, (8, 25)),
        (128, None, LOCAL, (8, 8)),
        (128, None, GLOBAL, (8, 8)),
        (16, None, LOCAL, (8, 1)),
        (1024, (10, 10), GLOBAL, (12, 101)),
    ],
)
def test_every_length_and_variant_trains(frames, stride, decoder, grid):
    model = build(frames, decoder, stride=stride).train()
    assert model.grid == grid
    count = grid[0] * grid[1]
    x = torch.randn(2, frames, 128)
    hidden = random_patches(torch.rand(2, count), max(1, int(count * 0.2)))
    visible = visible_indices(hidden)
    patches = model.encoder.patches(x)
    tokens = model.encoder.norm(model.encoder(patches, visible))
    assert tokens.shape == (2, 1 + visible.shape[1], 32)
    drawn = model.decoder.pred(model.decoder(tokens, visible, count))
    assert drawn.shape == (2, count, 256)
    masked_patch_error(drawn, model.targets(patches), hidden).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert model.eval().reconstruct(x).shape == x.shape
        assert model.embedding(x).shape == (2, 32)


@pytest.mark.parametrize("decoder", [LOCAL, GLOBAL])
@torch.no_grad()
def test_hidden_patches_leave_no_trace_in_the_prediction(decoder):
    model = build(decoder=decoder)
    x = torch.randn(2, 128, 128)
    hidden = random_patches(torch.rand(2, 64), 20)
    other = torch.where(
        hidden.view(2, 8, 1, 8, 1).expand(2, 8, 16, 8, 16).reshape(2, 128, 128), 9.0, x
    )
    visible = visible_indices(hidden)

    def drawn(log_mel):
        tokens = model.encoder.norm(model.encoder(model.encoder.patches(log_mel), visible))
        return model.decoder(tokens, visible, 64)

    assert torch.equal(drawn(x), drawn(other))


@torch.no_grad()
def test_dropping_tokens_is_encoding_the_rest():
    """The visible tokens alone, in any order, with their own positions."""
    model = build()
    x = torch.randn(1, 128, 128)
    places = torch.randperm(64)[:20]
    hidden = torch.ones(1, 64, dtype=torch.bool)
    hidden[0, places] = False
    tokens = model.tokens(x, hidden)
    encoder = model.encoder
    proj = encoder.patch_embed.proj
    embedded = functional.conv2d(x[:, None], proj.weight, proj.bias, stride=16).flatten(2)
    rows = embedded.transpose(1, 2) + encoder.pos_embed[:, 1:]
    sequence = torch.cat((encoder.cls_token + encoder.pos_embed[:, :1], rows[:, places]), dim=1)
    for block in encoder.blocks:
        sequence = block(sequence)
    sequence = encoder.norm(sequence)
    order = places.argsort()
    expected = torch.cat((sequence[:, :1], sequence[:, 1:][:, order]), dim=1)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=2e-6)


def test_gradients_are_those_of_a_model_written_without_tricks():
    """F2, row 6: masks by multiplication and gather, as in the paper's pseudo code."""
    model = build(decoder=LOCAL).double().eval()
    x = torch.randn(2, 128, 128, dtype=torch.float64)
    hidden = random_patches(torch.rand(2, 64), 30)
    visible = visible_indices(hidden)

    def loss_ours():
        patches = model.encoder.patches(x)
        tokens = model.encoder.norm(model.encoder(patches, visible))
        drawn = model.decoder.pred(model.decoder(tokens, visible, 64))
        errors = (
            (
                drawn
                - (patches - patches.mean(2, keepdim=True))
                / (patches.var(2, keepdim=True) + 1e-6).sqrt()
            )
            .square()
            .mean(2)
        )
        return errors[hidden].mean()

    def loss_plain():
        total = 0
        for clip, keep in zip(x, visible, strict=True):
            encoder, decoder = model.encoder, model.decoder
            cells = torch.stack(
                [
                    clip[t * 16 : t * 16 + 16, f * 16 : f * 16 + 16].reshape(-1)
                    for t in range(8)
                    for f in range(8)
                ]
            )
            rows = cells @ encoder.patch_embed.proj.weight.flatten(1).t()
            rows = rows + encoder.patch_embed.proj.bias + encoder.pos_embed[0, 1:]
            sequence = torch.cat((encoder.cls_token[0], rows[keep]))[None]
            for block in encoder.blocks:
                sequence = block(sequence)
            shown = decoder.embed(encoder.norm(sequence))[0, 1:]
            full = [decoder.mask_token[0, 0]] * 64
            for index, place in enumerate(keep.tolist()):
                full[place] = shown[index]
            full = torch.stack(full) + decoder.pos_embed[0, 1:]
            drawn = decoder.pred(decoder.norm(decoder.blocks(full[None], (8, 8))))[0]
            for place in range(64):
                if place not in keep.tolist():
                    cell = cells[place]
                    target = (cell - cell.mean()) / (cell.var() + 1e-6).sqrt()
                    total = total + (drawn[place] - target).square().mean()
        return total / (2 * 34)

    gradients = []
    for loss in (loss_ours, loss_plain):
        model.zero_grad()
        value = loss()
        value.backward()
        gradients.append(
            (
                value,
                {
                    name: p.grad.clone()
                    for name, p in model.named_parameters()
                    if p.grad is not None
                },
            )
        )
    (a, ours), (b, plain) = gradients
    assert abs(a - b) < 1e-10
    assert ours.keys() == plain.keys() == dict(model.named_parameters()).keys()
    for name, gradient in ours.items():
        if "meta_mlp.fc2.bias" not in name:
            assert (gradient - plain[name]).norm() <= 1e-6 * plain[name].norm() + 1e-12, name


def test_loss_normalises_with_the_unbiased_variance():
    patches = torch.randn(2, 5, 256) * 3 + 1
    ours, mean, deviation = normalised(patches)
    for clip in range(2):
        for n in range(5):
            cell = patches[clip, n]
            sigma = (((cell - cell.mean()) ** 2).sum() / 255 + 1e-6).sqrt()
            torch.testing.assert_close(
                ours[clip, n], (cell - cell.mean()) / sigma, rtol=0, atol=1e-5
            )
            torch.testing.assert_close(deviation[clip, n, 0], sigma, rtol=1e-5, atol=0)
            torch.testing.assert_close(mean[clip, n, 0], cell.mean(), rtol=0, atol=1e-6)
    assert normalised(torch.full((1, 1, 256), 4.0))[0].abs().max() < 1e-2


@pytest.mark.parametrize("frames", [128, 130, 98, 400])
@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_is_the_spectrogram_itself(frames, norm_pix, monkeypatch):
    """In the units of the input, at any length, whatever the decoder was trained to draw."""
    model = build(norm_pix=norm_pix)
    x = torch.randn(2, frames, 128) * 2 - 1
    seen = {}
    patches_of = model.encoder.patches

    def spy(log_mel):
        seen["targets"] = model.targets(patches_of(log_mel))
        return patches_of(log_mel)

    monkeypatch.setattr(model.encoder, "patches", spy)
    monkeypatch.setattr(model.decoder, "forward", lambda *_: seen["targets"])
    monkeypatch.setattr(model.decoder.pred, "forward", lambda rows: rows)
    torch.testing.assert_close(model.reconstruct(x), x, rtol=0, atol=1e-5)


@torch.no_grad()
def test_reconstruct_takes_hidden_patches_in_frequency_major_order():
    model = build()
    x = torch.randn(1, 128, 128)
    hidden = torch.zeros(1, 8, 8, dtype=torch.bool)
    hidden[0, 2, 5] = True  # row 2, column 5
    other = x.clone()
    other[0, 5 * 16 : 6 * 16, 2 * 16 : 3 * 16] += torch.randn(16, 16)
    a, b = (model.reconstruct(log_mel, hidden.flatten(1)) for log_mel in (x, other))
    same = torch.ones(128, 128, dtype=torch.bool)
    same[5 * 16 : 6 * 16, 2 * 16 : 3 * 16] = False
    # Nothing of the hidden patch is seen; its own drawing is scaled back by its own statistics.
    assert torch.equal(a[0][same], b[0][same])
    assert not torch.equal(a[0][~same], b[0][~same])


def test_overlapping_patches_cover_and_keep_what_they_do_not():
    model = build(frames=131, stride=(10, 10))
    x = torch.randn(1, 131, 128)
    time, freq = model.coverage(131)
    assert time.sum() == 11 * 10 + 16
    assert freq.sum() == 11 * 10 + 16
    with torch.no_grad():
        drawn = model.reconstruct(x)
    assert torch.equal(drawn[:, ~time], x[:, ~time])
    assert torch.equal(drawn[:, :, ~freq], x[:, :, ~freq])


@pytest.mark.parametrize("hidden", ["ragged", "all"])
def test_rows_that_hide_different_numbers_are_refused(hidden):
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, :3] = True
    mask[1, :4] = True
    if hidden == "all":
        mask[:] = True
    with pytest.raises(ConfigError, match="dropped_patches"):
        build().tokens(torch.randn(2, 128, 128), mask)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 8}, "frames"),
        ({"decoder": LOCAL._replace(heads=3)}, "multiple of 4 and of decoder_heads, 3"),
        ({"decoder": LOCAL._replace(width=30, heads=2)}, "decoder_width is 30"),
        ({"decoder": LOCAL._replace(depth=0)}, "must be positive"),
        ({"decoder": LOCAL._replace(window=0)}, "must be positive"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_other_sizes_of_input_are_refused_in_words():
    model = build(num_classes=3)
    with pytest.raises(ConfigError, match=r"built for spectrograms .* got \[1, 64, 128\]"):
        model(torch.randn(1, 64, 128))
    with pytest.raises(ConfigError, match="built for 128 mel bins and got 64"):
        model.embedding(torch.randn(1, 128, 64))
    with pytest.raises(ConfigError, match="unknown model size 'giant'"):
        built_audiomae("giant")


def test_without_pixels_nothing_is_drawn():
    for model in (build(decoder=None), build(pixels=False)):
        with pytest.raises(NoReconstruction, match="no trained pixel head"):
            model.reconstruct(torch.randn(1, 128, 128))
        assert not model.reconstructs


@pytest.mark.parametrize("decoder", [LOCAL, GLOBAL, LOCAL._replace(window=2, first_shift=1), None])
def test_a_state_tells_its_decoder(decoder):
    assert decoder_of(build(decoder=decoder).state_dict()) == decoder
    # A classifier without a decoder takes the state's.
    fresh = built_audiomae("toy", frames=128)
    fresh.load_state_dict(build(decoder=decoder).state_dict())
    assert (fresh.decoder.shape if fresh.decoder else None) == decoder
    if decoder is not None:
        x = torch.randn(1, 128, 128)
        with torch.no_grad():
            assert torch.equal(fresh.eval().reconstruct(x), build(decoder=decoder).reconstruct(x))


def test_a_state_of_another_geometry_is_refused():
    state = build(frames=64).state_dict()
    with pytest.raises(RuntimeError, match=r"weights belong to \(frames, mels, stride\) \[64"):
        build(frames=128).load_state_dict(state)


def test_a_classifier_leaves_decoder_and_final_norm_untrained():
    model = build(num_classes=3)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"decoder", "encoder"}
    assert {name for name in frozen if name.startswith("encoder")} == {
        "encoder.norm.weight",
        "encoder.norm.bias",
    }
    loss = model(torch.randn(2, 128, 128), random_patches(torch.rand(2, 64), 30)).square().sum()
    loss.backward()
    waiting = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not waiting


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_classifier_written_out(pooling):
    model = build(num_classes=3, pooling=pooling)
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 128, 128)
    tokens = model.encoder(model.encoder.patches(x))
    pooled = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)
    row = functional.layer_norm(pooled, (32,), eps=1e-6)
    torch.testing.assert_close(model(x), row @ model.head.weight.t(), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        model.embedding(x), model.encoder.norm(tokens)[:, 1:].mean(dim=1), rtol=0, atol=1e-6
    )
