import pytest
import torch
from torch.nn import functional

from peas.errors import ConfigError
from peas.models.patches import (
    covered,
    fold_average,
    grid_shape,
    pad_to_patch,
    patchify,
    resize_positions,
    unpatchify,
)


@pytest.mark.parametrize(
    ("frames", "patch", "stride", "grid"),
    [
        (1024, (16, 16), (16, 16), (8, 64)),
        (1024, (128, 2), (128, 2), (1, 512)),
        (512, (16, 16), (10, 10), (12, 50)),
        (512, (16, 16), (16, 16), (8, 32)),
        (128, (16, 16), (10, 10), (12, 12)),
        (128, (16, 16), (16, 16), (8, 8)),
        (512, (128, 2), (128, 1), (1, 511)),
        (128, (128, 2), (128, 1), (1, 127)),
        (1024, (16, 16), (10, 10), (12, 101)),
    ],
)
def test_grid_of_every_recipe(frames, patch, stride, grid):
    assert grid_shape(frames, 128, patch, stride) == grid


@pytest.mark.parametrize(
    ("frames", "mels", "patch", "stride"),
    [(15, 128, (16, 16), (16, 16)), (64, 8, (16, 16), (16, 16)), (64, 64, (16, 16), (0, 10))],
)
def test_impossible_grid(frames, mels, patch, stride):
    with pytest.raises(ConfigError, match="patch"):
        grid_shape(frames, mels, patch, stride)


@pytest.mark.parametrize("patch", [(16, 16), (128, 2)])
def test_patchify_round_trip_and_order(patch):
    """Token = f_index * t_grid + t_index; cells in (frequency, time) order, as in `unfold`."""
    x = torch.randn(3, 64, 128)
    patches = patchify(x, patch)
    grid = grid_shape(64, 128, patch, patch)
    assert torch.equal(unpatchify(patches, patch, grid), x)
    image = x.transpose(1, 2).unsqueeze(1)
    assert torch.equal(patches, functional.unfold(image, patch, stride=patch).transpose(1, 2))
    f, t = grid[0] - 1, 1
    corner = x[:, t * patch[1] : (t + 1) * patch[1], f * patch[0] : (f + 1) * patch[0]]
    assert torch.equal(patches[:, f * grid[1] + t], corner.transpose(1, 2).flatten(1))


def test_patchify_refuses_a_ragged_input():
    with pytest.raises(ConfigError, match="pad_to_patch"):
        patchify(torch.zeros(1, 100, 128), (16, 16))
    padded = pad_to_patch(torch.ones(1, 100, 120), (16, 16))
    assert padded.shape == (1, 112, 128)
    assert padded.sum() == 100 * 120


@pytest.mark.parametrize(("patch", "stride"), [((16, 16), (10, 10)), ((128, 2), (128, 1))])
def test_fold_average(patch, stride):
    """Overlapping cells: true cells average to themselves; a lone patch's share is one of many."""
    x = torch.randn(2, 50, 128)
    image = x.transpose(1, 2).unsqueeze(1)
    patches = functional.unfold(image, patch, stride=stride).transpose(1, 2)
    folded = fold_average(patches, patch, stride, 50, 128)
    time, freq = covered(50, 128, patch, stride)
    cells = (time[:, None] & freq).expand_as(x)
    torch.testing.assert_close(folded[cells], x[cells])
    assert not folded[~cells].any()
    one = torch.zeros_like(patches)
    one[:, 0] = 1
    share = fold_average(one, patch, stride, 50, 128)
    assert share[0, 0, 0] == 1
    assert share[0, patch[1] - 1, 0] == 0.5


def test_covered():
    time, freq = covered(512, 128, (16, 16), (10, 10))
    assert time.sum() == 506
    assert not time[506:].any()
    assert freq.sum() == 126
    assert not freq[126:].any()
    assert covered(128, 128, (16, 16), (10, 10))[0].sum() == 126
    gaps, _ = covered(10, 2, (2, 2), (2, 4))
    assert gaps.tolist() == [True, True, False, False] * 2 + [True, True]


def positions(source):
    return torch.randn(1, 2 + source[0] * source[1], 5)


@pytest.mark.parametrize(("columns", "start"), [(50, 7), (12, 26), (32, 16), (8, 28), (63, 1)])
def test_positions_time_is_cut_from_the_centre(columns, start):
    table = positions((8, 64))
    found = resize_positions(table, 2, (8, 64), (8, columns))
    assert torch.equal(found[:, :2], table[:, :2])
    image = table[:, 2:].reshape(1, 8, 64, 5)
    wanted = image[:, :, start : start + columns].reshape(1, -1, 5)
    assert torch.equal(found[:, 2:], wanted)


def test_positions_frequency_is_interpolated():
    table = positions((8, 64))
    image = table[:, 2:].reshape(1, 8, 64, 5).permute(0, 3, 1, 2)
    wanted = functional.interpolate(image[..., 7:57], size=(12, 50), mode="bilinear")
    found = resize_positions(table, 2, (8, 64), (12, 50))[:, 2:]
    assert torch.equal(found, wanted.flatten(2).transpose(1, 2))


def test_positions_longer_in_time():
    table = positions((8, 64))
    image = table[:, 2:].reshape(1, 8, 64, 5).permute(0, 3, 1, 2)
    wider = functional.interpolate(image, size=(8, 101), mode="bilinear")
    wanted = functional.interpolate(wider, size=(12, 101), mode="bilinear")
    found = resize_positions(table, 2, (8, 64), (12, 101))[:, 2:]
    assert torch.equal(found, wanted.flatten(2).transpose(1, 2))


def test_positions_fewer_mel_bins():
    """The official code cuts the frequency axis to the time axis's length here, and fails."""
    table = positions((8, 64))
    found = resize_positions(table, 2, (8, 64), (4, 32))
    wanted = table[:, 2:].reshape(1, 8, 64, 5)[:, 2:6, 16:48].reshape(1, -1, 5)
    assert torch.equal(found[:, 2:], wanted)


def test_positions_of_another_grid_are_refused():
    with pytest.raises(ConfigError, match="514 positions"):
        resize_positions(positions((8, 64)), 2, (8, 32), (8, 16))
