"""Mel bins without sound: found in the clip, left out of PEAS's scores, told and drawn."""

import io
from typing import Any

import pytest
import soundfile
import torch
from matplotlib.patches import Patch
from torch import Tensor
from toys import StandIn, clips, heard, make_task, masked

from peas.audio.decode import load
from peas.audio.frontend import LogMel
from peas.callbacks import progress
from peas.callbacks.mask_plots import EMPTY, _view, plot_clip
from peas.callbacks.peas import PEAS
from peas.callbacks.progress import EpochLine
from peas.data.batch import Batch
from peas.masking.peas.selector import marginals
from peas.tasks import Classification

SHARED: dict[str, Any] = {"n_time": 1, "n_freq": 1, "max_time": 32, "max_freq": 24, "ramp": "off"}
CONSTANT = 3
"""The only filter without an FFT bin at 128 mels and 16 kHz."""


def noise(rate: int, seconds: float = 1.28, level: float = 0.1, seed: int = 0) -> Tensor:
    u = torch.rand(round(rate * seconds), generator=torch.Generator().manual_seed(seed))
    return level * (2 * u - 1)


def heard_at(samples: Tensor, rate: int) -> Tensor:
    """A 16-bit WAV file of another rate, as the data modules read it."""
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), rate, format="WAV", subtype="PCM_16")
    return load(file.getvalue(), name="clip")


def sounding(waveform: Tensor, **settings: Any) -> Tensor:
    front_end = LogMel(**{"frames": 128, "mean": -4.2677393, "std": 4.5689974, **settings})
    spectrogram = front_end(waveform[None])
    return front_end.sounding_bins(spectrogram.log_mel, spectrogram.valid)[0]


def edges(n_mels: int = 128) -> tuple[Tensor, Tensor]:
    """Lowest and highest frequency of each filter, in Hz."""
    low, high = (1127 * torch.log1p(torch.tensor(f / 700)) for f in (20.0, 8000.0))
    points = 700 * torch.expm1(torch.linspace(float(low), float(high), n_mels + 2) / 1127)
    return points[:-2], points[2:]


# --- in the clip ---------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 12000])
def test_bins_above_a_recordings_nyquist_frequency_are_empty(rate: int) -> None:
    found = sounding(heard_at(noise(rate), rate))
    lowest, highest = edges()
    # A bin across the edge may be either.
    inside = highest < 0.94 * rate / 2
    inside[CONSTANT] = False
    assert found[inside].all()
    assert not found[lowest >= rate / 2 + 100].any()
    assert not found[CONSTANT]


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_sound_of_the_whole_band_lacks_the_constant_filter_alone(rate: int) -> None:
    found = sounding(heard_at(noise(rate), rate))
    assert (~found).nonzero().flatten().tolist() == [CONSTANT]


def test_a_quiet_band_is_sound_and_rounding_is_not() -> None:
    spectrum = torch.fft.rfft(noise(16_000))
    frequency = torch.linspace(0, 8000, len(spectrum))
    quiet = torch.fft.irfft(torch.where(frequency < 3000, spectrum, 1e-3 * spectrum))
    none = torch.fft.irfft(torch.where(frequency < 3000, spectrum, 0))
    lowest, _ = edges()
    assert sounding(quiet)[lowest > 3200].all()
    assert not sounding((none * 32768).round() / 32768)[lowest > 3200].any()


def test_a_click_does_not_fill_a_band_and_a_short_sound_does() -> None:
    clip = heard_at(noise(8000, 5.0), 8000)
    full, lowest = noise(16_000, 5.0), edges()[0]
    click, bark = clip.clone(), clip.clone()
    click[40_000:40_100] = full[40_000:40_100]
    bark[40_000:44_000] = full[40_000:44_000]
    assert not sounding(click, frames=500)[lowest > 4100].any()
    assert sounding(bark, frames=500)[lowest > 4100].all()


def test_silence_and_padding_hold_no_sound() -> None:
    assert not sounding(torch.zeros(16_000)).any()
    # Padding is 0.0 on the raw scale, far above the floor.
    short = heard_at(noise(8000, 0.3), 8000)
    assert not sounding(short)[edges()[0] > 4100].any()


def test_constant_filters_are_those_of_the_bank() -> None:
    loud = noise(16_000)
    assert sounding(loud, n_mels=64).all()
    fine = sounding(loud, n_mels=256)
    assert (~fine).sum() > 5
    assert torch.equal(fine, LogMel(n_mels=256).mel.any(dim=0))


# --- in the scores -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> Classification:
    return make_task(noise_roll=True)


def telephone(task: Classification, noise_roll: bool = True) -> Batch:
    """Clips of 8 kHz: bins from 98 on lie above 4 kHz."""
    loaded = clips()
    rows = [heard_at(noise(8000, level=0.02 * (1 + i), seed=i), 8000) for i in range(8)]
    loaded["waveform"] = torch.stack(rows)[:, : loaded["waveform"].shape[1]]
    task.hparams["noise_roll"] = noise_roll
    try:
        return heard(task, loaded)
    finally:
        task.hparams["noise_roll"] = True


def lost_above(bin_: int, most: bool) -> Any:
    """A reconstruction that errs most, or least, from a bin on; elsewhere it errs at random."""

    def reconstruct(x: Tensor, hidden: Tensor | None = None, *, grid: str = "") -> Tensor:
        error = 1 + torch.rand(x.shape, generator=torch.Generator().manual_seed(5))
        error[:, :, bin_:] = 9.0 if most else 0.0
        return x + error

    return reconstruct


@pytest.mark.parametrize("noise_roll", [False, True])
@pytest.mark.parametrize("stage", ["after_noise", "before_noise"])
@pytest.mark.parametrize("score", ["pred", "rec", "predicted", "energy", "shuffled", "easy"])
def test_no_score_puts_a_window_on_bins_without_sound(
    task: Classification,
    score: Any,
    stage: Any,
    noise_roll: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = telephone(task, noise_roll)
    # e_rec is fed back, so equation 2 errs where `reconstruct` does too.
    monkeypatch.setattr(task.model, "reconstruct", lost_above(98, score != "easy"))
    for exclude in (True, False):
        strategy = PEAS(**SHARED, score=score, stage=stage, exclude_empty_bins=exclude)
        start = masked(strategy, task, batch)["mask_plan"][1].window_start[:, 0]
        found = strategy.sounding(task, batch)
        touched = torch.stack([~found[b, s : s + 24].all() for b, s in enumerate(start.tolist())])
        if exclude:
            assert not touched.any()
        else:
            assert touched.all() if score != "energy" else touched.any()
        share = strategy.means.state_dict()["peas/windows_on_empty_bins"]
        assert share == [float(touched.sum()), 8.0]


def test_bins_left_out_enter_no_mean_of_their_clip() -> None:
    score = torch.rand(2, 30, 20)
    ok = torch.ones(2, 20, dtype=torch.bool)
    ok[0, 12:] = False
    spoiled = score.clone()
    spoiled[0, :, 12:] = torch.nan
    time, freq = marginals(spoiled, None, ok)
    torch.testing.assert_close(time[0], score[0, :, :12].mean(1))
    torch.testing.assert_close(time[1], score[1].mean(1))
    torch.testing.assert_close(freq[0, :12], score[0, :, :12].mean(0))
    torch.testing.assert_close(freq[1], score[1].mean(0))


def test_the_second_block_looks_for_the_remaining_bins(task: Classification) -> None:
    settings = {**SHARED, "n_freq": 3, "exclude_empty_bins": True}
    plan = masked(PEAS(**settings), task, telephone(task))["mask_plan"][1]
    start = plan.window_start
    # Two fit into the 94 bins above the constant one without touching anything; the third holds
    # what is left.
    assert (start + 24 > 98).sum(1).le(1).all()
    assert (start < 98).all()
    assert plan.adaptive.all()


def test_a_clip_of_few_bins_keeps_as_many_as_possible_and_says_so(task: Classification) -> None:
    settings = {**SHARED, "max_freq": 110, "exclude_empty_bins": True}
    strategy = PEAS(**settings)
    start = masked(strategy, task, telephone(task))["mask_plan"][1].window_start
    assert (start == 0).all()
    assert strategy.means.state_dict()["peas/windows_on_empty_bins"] == [8.0, 8.0]


def test_the_finetuning_grid_and_empty_bins_are_left_out_together(task: Classification) -> None:
    strategy = PEAS(**SHARED, aux_grid="finetune", exclude_empty_bins=True)
    batch = telephone(task)
    found = strategy.sounding(task, batch)
    _, ok = strategy.countable(task, batch["log_mel"], batch["valid"], found)
    covered = task.model.coverage(128, "finetune")[1]
    assert ok is not None
    assert torch.equal(ok, found & covered)


def test_kept_errors_know_what_they_leave_out(task: Classification) -> None:
    settings = {**SHARED, "refresh_every": 1000, "exclude_empty_bins": True}
    strategy, later = PEAS(**settings), PEAS(**settings)
    other = PEAS(**{**settings, "exclude_empty_bins": False})
    batch = telephone(task)
    first = masked(strategy, task, batch)["mask_plan"][1]
    again = masked(strategy, task, batch)["mask_plan"][1]
    assert torch.equal(first.window_start, again.window_start)
    state = strategy.state_dict()
    later.load_state_dict(state)
    assert len(later.cache) == 8
    # Means over other cells are another run's.
    other.load_state_dict(state)
    assert len(other.cache) == 0
    del state["cache_leaves_out"]
    other.load_state_dict(state)
    assert len(other.cache) == 8


# --- told and drawn ------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "told"), [(0.2, False), (0.21, True)])
def test_the_epoch_line_tells_of_many_windows(
    share: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "rank_zero_info", lines.append)
    trainer: Any = StandIn(callback_metrics={})
    line = EpochLine()
    line.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    trainer.callback_metrics["peas/windows_on_empty_bins"] = torch.tensor(share)
    line.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert ("21%" in lines[0]) is told
    # A figure of an earlier epoch is not told again.
    line.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    line.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert "%" not in lines[1]


@pytest.mark.parametrize("stage", ["after_noise", "before_noise"])
def test_the_picture_hatches_the_bins(task: Classification, stage: Any) -> None:
    strategy = PEAS(**SHARED, stage=stage, exclude_empty_bins=True)
    batch = masked(strategy, task, telephone(task))
    view = _view(task.trainer, task, strategy, batch, 2)
    assert view.empty is not None
    assert torch.equal(view.empty, ~strategy.sounding(task, batch)[2])
    assert view.empty[CONSTANT]
    assert view.empty[98:].all()
    assert view.freq_scores is not None
    assert int(view.freq_scores.argmax()) == int(view.freq.window_start[0, 0])
    assert view.freq_scores[98 - 24 + 1 :].isinf().all()
    hatched = [
        sum(isinstance(a, Patch) and a.get_hatch() == EMPTY["hatch"] for a in axes.get_children())
        for axes in plot_clip(view).axes
    ]
    assert max(hatched) >= 2
    assert sum(count > 0 for count in hatched) == 2
