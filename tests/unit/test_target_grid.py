import dataclasses

import pytest
import torch

from peas.audio.filter_bank import filter_bank
from peas.errors import ConfigError
from peas.teachers.grid import Extent, patch_edges, patch_times, target_matrix

# 32 columns of 32 image columns, 1023 steps of which span 1000 frames of 10 ms.
STEP = 0.32 * 1000 / 1023
CLAP = Extent(15.5 * STEP / 32, STEP, (77.0, 2293.0, 13616.0))
METHODS = ("physical", "physical_linear", "nearest", "bilinear")
GRIDS = ((64, 8), (32, 8), (25, 8), (8, 8), (1, 1))


def grid(method="physical", time=64, freq=8, columns=32, extent=CLAP, **sizes):
    """The matrix as [time patch, frequency patch, row, column]."""
    matrix = target_matrix(
        extent, columns, time_patches=time, freq_patches=freq, method=method, **sizes
    )
    assert matrix.shape == (time * freq, extent.rows * columns)
    assert matrix.dtype == torch.float32
    return matrix.view(time, freq, extent.rows, columns)


def places(weights):
    """The fractional column that each patch reads."""
    return (weights.sum(2) * torch.arange(weights.shape[3])).sum(-1)[:, 0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", GRIDS)
def test_each_target_is_a_mean_of_cells(method, shape):
    weights = grid(method, *shape).flatten(2)
    torch.testing.assert_close(weights.sum(2), torch.ones(shape))
    assert weights.min() >= 0


@pytest.mark.parametrize("method", METHODS)
def test_a_map_of_one_value_stays_it(method):
    cells = torch.full((2 * 32, 5), 3.25)
    targets = grid(method).reshape(512, 64) @ cells
    torch.testing.assert_close(targets, torch.full((512, 5), 3.25))


def test_patches_lie_where_the_front_end_hears_them():
    times = patch_times(64)
    assert times[0].item() == pytest.approx(0.0875)
    assert times[62].item() == pytest.approx(10.0075)
    edges = [27, 290, 649, 1137, 1803, 2709, 3944, 5626, 7916]
    assert patch_edges(8).round().tolist() == edges


def test_borders_of_patches_follow_the_filter_bank():
    # A triangle is 0 from its left neighbour's centre to its right neighbour's. Those that reach
    # over a border's nearest FFT bins must be the two filters beside it and no others.
    triangles = filter_bank(16_000, 128, torch.device("cpu")).mel[::2]
    for border, edge in zip(range(32, 128, 16), patch_edges(8)[2:8].tolist(), strict=True):
        place = edge / (16_000 / 512)
        around = triangles[[int(place), int(place) + 1]].amax(0).nonzero().flatten()
        assert {border - 1, border} <= set(around.tolist())
        peaks = triangles[:, [border - 1, border]].argmax(0) * 16_000 / 512
        assert peaks[0] - 16 <= edge <= peaks[1] + 16


def test_columns_of_clap_by_physical_time():
    place = places(grid())
    assert place[1].item() == pytest.approx(0.307, abs=5e-4)
    assert place[31].item() == pytest.approx(15.652, abs=5e-4)
    # The first patch lies before the first column's centre, the last two beyond the last.
    assert place[0] == 0
    assert place[[62, 63]].tolist() == [31, 31]


def test_plain_resize_drifts_from_physical_time():
    drift = places(grid("bilinear")) - places(grid())
    assert drift[31].item() == pytest.approx(-0.402, abs=1e-3)
    assert places(grid("bilinear"))[62].item() == 30.75
    assert places(grid("nearest")).tolist() == [t // 2 for t in range(64)]


def test_rows_of_clap_by_frequency():
    assert grid().sum(3)[0, :, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert grid("nearest").sum(3)[0, :, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    blended = grid("physical_linear").sum(3)[0, :, 0]
    assert (blended[2:].diff() < 0).all()
    assert blended[[0, 7]].tolist() == [1, 0]


def test_linear_rows_keep_a_map_linear_in_mel():
    # Read from a map that holds the mel value of its rows' centres, a patch gets its own.
    extent = Extent(0.16, 0.32, (0.0, 823.0, 2614.0, 6511.0, 15_000.0))

    def mel(hertz):
        return 1127 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700)

    edges, borders = mel(patch_edges(8)), mel(extent.freq_edges)
    own = ((edges[1:] + edges[:-1]) / 2).float()
    rows = ((borders[1:] + borders[:-1]) / 2).float()
    weights = grid("physical_linear", 8, 8, 13, extent).sum(3)[0]
    read = weights @ rows
    inside = (own >= rows[0]) & (own <= rows[-1])
    assert inside.sum() >= 6
    torch.testing.assert_close(read[inside], own[inside])
    hard = grid("physical", 8, 8, 13, extent).sum(3)[0].argmax(1)
    assert hard.tolist() == [0, 0, 1, 1, 1, 2, 2, 3]


def test_token_order_is_time_major_and_cells_rows_first():
    extent = Extent(0.0875, 0.16, (0.0, 1000.0, 8000.0))  # a column a patch
    matrix = target_matrix(extent, 4, time_patches=4, freq_patches=8)
    cells = torch.arange(2 * 4.0).view(2, 4)  # row r, column c holds 4 r + c
    targets = (matrix @ cells.flatten()).view(4, 8)
    assert targets[:, 0].tolist() == [0, 1, 2, 3]
    assert targets[:, 7].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("method", METHODS)
def test_a_short_clip_reads_only_its_own_columns(method):
    # 25 patches end after 4.015 s. Column 12 is centred at 3.905 s, column 13 at 4.218 s: it is
    # read only by the share in which the last patch's centre, 3.928 s, is nearer to it.
    weights = grid(method, 25)
    read = weights.sum((0, 1, 2))
    assert (read[:13] > 0).all()
    assert (read[14:] == 0).all()
    last = weights.sum(2)[24, 0, 13].item()
    assert last == pytest.approx((3.9275 - 3.9053) / STEP if "physical" in method else 0, abs=1e-3)


def test_other_patches_than_square():
    # Frames of 128 mel bins and 2 frames, one patch over all bins.
    weights = grid(time=500, freq=1, patch_frames=2, patch_mels=128)
    assert places(weights).diff().max().item() == pytest.approx(0.02 / STEP, rel=1e-3)


def test_a_map_of_one_row_or_one_column():
    flat = Extent(0.5, 1.0, (0.0, 8000.0))
    for method in METHODS:
        assert (grid(method, 8, 8, 1, flat) == 1).all()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"step": 0.0}, r"step is 0\.0 s"),
        ({"step": float("nan")}, "must be finite"),
        ({"first_centre": float("inf")}, "must be finite"),
        ({"freq_edges": (100.0,)}, "at least two"),
        ({"freq_edges": (100.0, 100.0)}, "rise"),
        ({"freq_edges": (-1.0, 100.0)}, "rise from 0"),
        ({"freq_edges": (0.0, 900.0, 300.0)}, "lowest row first"),
    ],
)
def test_impossible_extents(changes, told):
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(CLAP, **changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"columns": 0}, "columns is 0"),
        ({"time_patches": 0}, "time_patches is 0"),
        ({"patch_frames": -1}, "patch_frames is -1"),
        ({"freq_patches": 9}, "beyond the 128 mel bins"),
        ({"method": "cubic"}, "no 'cubic'; choose one of physical"),
    ],
)
def test_impossible_grids(changes, told):
    settings = {"columns": 32, "time_patches": 64, "freq_patches": 8} | changes
    with pytest.raises(ConfigError, match=told):
        target_matrix(CLAP, settings.pop("columns"), **settings)
