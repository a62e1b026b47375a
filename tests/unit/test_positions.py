"""Fixed positions of AudioMAE: both rasters, how they are told apart and what a cut keeps."""

import math

import pytest
import torch
from made import built_audiomae, classification, masked_task

from peas.errors import ConfigError
from peas.models.audiomae_layers import (
    DecoderShape,
    fitted,
    official_raster,
    position_table,
    raster_of,
)


def naive(width, row, column):
    """One position written out: column first, then row; sines, then cosines."""
    quarter = width // 4
    rates = [10000 ** (-k / quarter) for k in range(quarter)]
    return [
        wave(place * rate)
        for place in (column, row)
        for wave in (math.sin, math.cos)
        for rate in rates
    ]


@pytest.mark.parametrize(
    ("raster", "place"),
    [("stored", lambda i: (i // 64, i % 64)), ("geometric", lambda i: (i // 8, i % 8))],
)
def test_a_tokens_position_written_out(raster, place):
    table = position_table(16, 64, 8, raster)[0]
    assert table.shape == (513, 16)
    assert not table[0].any()
    for index in (0, 1, 43, 64, 200, 511):
        expected = torch.tensor(naive(16, *place(index)))
        torch.testing.assert_close(table[1 + index], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("raster", ["stored", "geometric"])
@pytest.mark.parametrize("columns", [8, 25, 32])
def test_a_shorter_clips_table_is_the_beginning_of_a_longer_ones(raster, columns):
    long = position_table(32, 64, 8, raster)
    short = position_table(32, columns, 8, raster)
    assert torch.equal(short, long[:, : 1 + 8 * columns])
    assert torch.equal(fitted(long, 8 * columns, 8, "its"), short)
    assert torch.equal(fitted(short, 512, 8, "its"), long)


def test_the_raster_is_told_from_the_table():
    assert raster_of(position_table(32, 64, 8), 8) == "stored"
    assert raster_of(position_table(32, 64, 8, "geometric"), 8) == "geometric"
    stored, geometric = (position_table(32, 64, 8, r) for r in ("stored", "geometric"))
    assert not torch.allclose(stored, geometric)
    moved = stored + 1e-3
    assert raster_of(moved, 8) is None
    # Half precision is too coarse to be the table itself.
    assert raster_of(stored[:, :-1], 8) is None


def test_a_table_of_neither_raster_keeps_its_length():
    other = torch.randn(1, 65, 32)
    assert fitted(other, 64, 8, "its") is other
    with pytest.raises(ConfigError, match=r"its table of 64 positions is neither .* 128 patches"):
        fitted(other, 128, 8, "its")


def test_overlapping_patches_have_the_official_table():
    """AudioMAE's stride of 10: 101 x 12 patches, token i at row i // 12 and column i % 12."""
    model = built_audiomae(
        "mini", stride=(10, 10), decoder=DecoderShape("local", 96, 1, 4, window=6)
    )
    assert model.grid == (12, 101)
    assert model.encoder.positions == "geometric"
    for table in (model.encoder.pos_embed, model.decoder.pos_embed):
        width = table.shape[2]
        assert table.shape[1] == 1 + 1212
        assert not table[0, 0].any()
        for index in (0, 1, 11, 12, 64, 600, 1211):
            expected = torch.tensor(naive(width, index // 12, index % 12))
            torch.testing.assert_close(table[0, 1 + index], expected, rtol=0, atol=1e-5)
        assert raster_of(table, 12) == "geometric"


@pytest.mark.parametrize(
    ("stride", "raster"), [(None, "stored"), ((16, 16), "stored"), ((10, 10), "geometric")]
)
def test_the_default_raster_is_the_official_codes(stride, raster):
    assert official_raster((16, 16), stride or (16, 16)) == raster
    tuned = classification(encoder="audiomae", stride=stride)
    for task in (masked_task(stride=stride), tuned):
        assert task.hparams["encoder"]["init_args"]["positions"] == raster
    for given in ("stored", "geometric"):
        task = masked_task(stride=stride, positions=given)
        assert task.hparams["encoder"]["init_args"]["positions"] == given
