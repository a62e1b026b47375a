"""Noise and roll against torch.roll."""

import torch

from peas.tasks.augmentation import noise_and_roll, roll_time


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_roll_is_torch_roll_clip_by_clip() -> None:
    x, shift = draws(5, 40, 3), torch.tensor([0, 3, -10, 9, 45])
    rolled = roll_time(x, shift)
    for b in range(5):
        assert torch.equal(rolled[b], x[b].roll(int(shift[b]), 0))
    assert torch.equal(roll_time(rolled, -shift), x)
    flat = x[..., 0] > 0.5
    assert torch.equal(roll_time(flat, shift), roll_time(x, shift)[..., 0] > 0.5)


def test_noise_and_roll_by_hand() -> None:
    x, u_noise, u_clip = draws(6, 40, 3), draws(6, 40, 3, seed=1), draws(6, 2, seed=2)
    got = noise_and_roll(x, u_noise, u_clip)
    for b in range(6):
        shift = int(u_clip[b, 1] * 20) - 10
        noise = u_noise[b] * (u_clip[b, 0] / 10)
        assert got.roll[b] == shift
        torch.testing.assert_close(got.log_mel[b], torch.roll(x[b] + noise, shift, 0))


def test_ranges_of_noise_and_shift() -> None:
    edge = 1 - 2**-24
    u_clip = torch.stack([draws(4000), torch.linspace(0, edge, 4000)], 1)
    u_clip[:2] = torch.tensor([[0.0, 0.0], [edge, edge]])
    x = torch.zeros(4000, 4, 2)
    got = noise_and_roll(x, draws(4000, 4, 2, seed=1), u_clip)
    assert torch.equal(got.roll.unique(), torch.arange(-10, 10))
    assert got.log_mel.min() >= 0
    assert got.log_mel.max() <= 0.1
    assert got.log_mel.max() > 0.09
    # One scale a clip: half of the draws' mean, and none where the scale is zero.
    assert (got.log_mel[0] == 0).all()
    torch.testing.assert_close(got.log_mel.mean(), torch.tensor(0.025), atol=2e-3, rtol=0)
