"""AudioMAE's roll and gain: their laws, each clip's own samples, and when they act."""

import numpy as np
import pytest
import torch
from toys import clips, heard, make_task, part

from peas.audio.roll_gain import ROLL_GAIN_NUMBERS, roll_and_gain


def test_roll_is_cyclic_within_each_clips_own_samples() -> None:
    waveform = torch.arange(1.0, 15.0).reshape(2, 7)
    waveform[1, 4:] = 0
    u = torch.full((2, ROLL_GAIN_NUMBERS), 0.5)
    u[:, 0] = torch.tensor([3.5 / 7, 1.5 / 4])
    rolled = roll_and_gain(waveform, torch.tensor([7, 4]), u, roll=True)
    # A gain of 0.5 + 0.5.
    assert rolled.tolist() == [[5, 6, 7, 1, 2, 3, 4], [11, 8, 9, 10, 0, 0, 0]]
    assert torch.equal(roll_and_gain(waveform, torch.tensor([7, 4]), u, roll=False), waveform)


def test_shift_is_uniform_over_the_clip() -> None:
    clips_, samples = 4000, 10
    impulse = torch.zeros(clips_, samples)
    impulse[:, 0] = 1
    u = torch.rand((clips_, ROLL_GAIN_NUMBERS), generator=torch.Generator().manual_seed(0))
    rolled = roll_and_gain(impulse, torch.full((clips_,), samples), u, roll=True)
    counts = (rolled > 0).sum(0)
    assert counts.sum() == clips_
    # Five standard deviations of a binomial law.
    assert (counts - 400).abs().max() < 5 * (4000 * 0.1 * 0.9) ** 0.5


def test_a_draw_close_to_one_stays_inside_a_long_clip() -> None:
    samples = 2**22 + 3
    waveform = torch.zeros(1, samples)
    waveform[0, 0] = 1
    u = torch.full((1, ROLL_GAIN_NUMBERS), 1 - 2**-24)
    rolled = roll_and_gain(waveform, torch.tensor([samples]), u, roll=True)
    assert rolled.argmax() == samples - 1


def test_gain_has_the_law_of_beta() -> None:
    u = torch.rand((20_000, ROLL_GAIN_NUMBERS), generator=torch.Generator().manual_seed(1))
    ones = torch.ones(len(u), 1)
    gain = roll_and_gain(ones, torch.ones(len(u), dtype=torch.long), u, roll=False)[:, 0]
    wanted = np.random.default_rng(0).beta(10, 10, 20_000) + 0.5
    points = (1, 10, 50, 90, 99)
    assert np.allclose(np.percentile(gain, points), np.percentile(wanted, points), atol=0.015)
    assert gain.mean() == pytest.approx(1.0, abs=0.003)
    assert gain.std() == pytest.approx((10 * 10 / (20**2 * 21)) ** 0.5, abs=0.003)


def test_silence_and_an_empty_clip_stay() -> None:
    u = torch.rand((2, ROLL_GAIN_NUMBERS))
    out = roll_and_gain(torch.zeros(2, 5), torch.tensor([5, 0]), u, roll=True)
    assert torch.equal(out, torch.zeros(2, 5))


# --- in the task ---------------------------------------------------------------------------


def test_gain_moves_the_log_mel_and_the_roll_moves_the_sound() -> None:
    plain = heard(make_task(noise_roll=False), clips())
    gain = heard(make_task(noise_roll=False, roll_gain="official"), clips())
    paper = heard(make_task(noise_roll=False, roll_gain="paper"), clips())
    u = make_task().random_numbers(clips(), "roll_gain", (ROLL_GAIN_NUMBERS,))
    step = 2 * (u[:, 1:].median(1).values + 0.5).log() / (2 * 4.1377)
    # Cells far above the floor of the logarithm.
    loud = (plain["log_mel"] > 0) & plain["valid"][:, :, None]
    difference = gain["log_mel"] - plain["log_mel"] - step[:, None, None]
    assert difference[loud].abs().max() < 1e-2
    shift = int(u[0, 0].double() * 20480)
    wanted = plain["waveform"][0].roll(shift) * (u[0, 1:].median() + 0.5)
    assert torch.equal(paper["waveform"][0], wanted)
    assert not torch.allclose(paper["log_mel"], gain["log_mel"], atol=0.1)


def test_evaluation_hears_the_clip_as_it_is() -> None:
    task = make_task(roll_gain="paper")
    task.trainer.training = False
    batch = heard(task, clips())
    assert torch.equal(batch["waveform"], clips()["waveform"])


def test_draws_do_not_change_with_the_number_of_processes() -> None:
    task = make_task(noise_roll=False, roll_gain="paper")
    whole = heard(task, clips())["log_mel"]
    for rank in (0, 1):
        rows = range(rank, 8, 2)
        assert torch.equal(heard(task, part(clips(), rows))["log_mel"], whole[list(rows)])
