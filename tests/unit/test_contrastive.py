"""InfoNCE and the error of drawn patches against loops over clips."""

import pytest
import torch
from torch import Tensor

from peas.objectives import info_nce, patch_errors

SOURCE = torch.Generator().manual_seed(0)
GUESS, TARGET = (torch.randn(3, 7, 5, generator=SOURCE) for _ in range(2))


def of_a_clip(guess: Tensor, target: Tensor, axis: str) -> tuple[float, float]:
    """Sum of the losses and of the right ones, as the paper's or the official loop has them."""
    loss, right = 0.0, 0
    for m in range(len(target)):
        scores = [float(target[m] @ guess[k]) for k in range(len(guess))]
        if axis == "paper":
            scores = [float(target[k] @ guess[m]) for k in range(len(guess))]
        loss -= float(torch.tensor(scores).log_softmax(0)[m])
    table = target @ guess.T
    p = table.softmax(1 if axis == "code" else 0)
    for k in range(len(guess)):
        right += int(p[:, k].argmax() == k)
    return loss, right


@pytest.mark.parametrize("axis", ["code", "paper"])
def test_info_nce_is_the_loop(axis: str) -> None:
    found = info_nce(GUESS, TARGET, axis)  # type: ignore[arg-type]
    clips = [of_a_clip(GUESS[b], TARGET[b], axis) for b in range(3)]
    assert float(found.loss) == pytest.approx(sum(loss for loss, _ in clips) / 21, abs=1e-5)
    assert float(found.accuracy) == pytest.approx(sum(right for _, right in clips) / 21)


def test_the_axes_differ() -> None:
    assert info_nce(GUESS, TARGET).loss != info_nce(GUESS, TARGET, "paper").loss


def test_patches_that_are_known_are_told() -> None:
    target = 10 * torch.eye(6)[None]
    for axis in ("code", "paper"):
        found = info_nce(target, target, axis)  # type: ignore[arg-type]
        assert float(found.loss) < 1e-6
        assert float(found.accuracy) == 1.0


def test_predictions_learn_and_patches_do_not() -> None:
    guess, target = GUESS.clone().requires_grad_(), TARGET.clone().requires_grad_()
    (info_nce(guess, target).loss + patch_errors(guess, target).mean()).backward()
    assert guess.grad is not None
    assert target.grad is None


def test_scores_are_made_in_float32() -> None:
    half = GUESS.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = info_nce(half, TARGET)
        error = patch_errors(half, TARGET).mean()
    assert torch.equal(found.loss, info_nce(half.float(), TARGET).loss)
    assert torch.equal(error, patch_errors(half.float(), TARGET).mean())
    assert found.loss.dtype == error.dtype == torch.float32


def test_errors_of_patches() -> None:
    errors = patch_errors(GUESS, TARGET)
    assert float(errors[1, 2]) == pytest.approx(float((GUESS - TARGET)[1, 2].square().mean()))
