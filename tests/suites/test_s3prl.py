"""s3prl's own wrapper and weighted sum of layers over the expert."""

from pathlib import Path

import pytest
import torch

import peas
from peas.suites.s3prl import register

pytestmark = [pytest.mark.needs_suites]
pytest.importorskip("s3prl", reason="needs the suites: make test-suites")


@pytest.mark.parametrize("lengths", [[16_000, 32_000], [1_601, 1_601], [700, 100], [30_000]])
def test_a_weighted_sum_of_all_layers(checkpoint: Path, lengths: list[int]) -> None:
    register()
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("peas_local", str(checkpoint))
    featurizer = Featurizer(upstream)
    waveforms = torch.randn(len(lengths), max(lengths)) / 10
    states, counts = upstream(waveforms, torch.tensor(lengths))
    assert len(states) == upstream.num_layers == 5
    assert upstream.downsample_rates == [1600] * 5
    summed, count = featurizer(states, counts)
    assert summed.shape[2] == featurizer.output_size == upstream.hidden_sizes[0]
    assert count.tolist() == [-(-length // 1600) for length in lengths]
    assert torch.allclose(summed, torch.stack(states).mean(dim=0), atol=1e-5)
    summed.sum().backward()
    assert featurizer.weights.grad is not None
    if min(lengths) < 1600:
        # s3prl pads these itself.
        return
    model = peas.load(checkpoint, "cpu")
    clips = [clip[:length] for clip, length in zip(waveforms, lengths, strict=True)]
    embedded, times = model.frames(clips, layers=range(5))
    for row, time in enumerate(times):
        own = int(time.isfinite().sum())
        for state, layer in zip(states, embedded, strict=True):
            assert torch.allclose(state[row, :own], layer[row, :own], atol=1e-5)
