"""Fine-tuning losses against torch's own, and the official code's trap."""

import pytest
import torch
import torch.nn.functional as F

from peas.objectives import as_soft, classification_loss, soft_cross_entropy

LOGITS = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 4, 2, 2, 1, 3, 4])


def test_soft_cross_entropy_of_one_hot_targets_is_the_hard_one() -> None:
    hard = F.cross_entropy(LOGITS, CLASSES)
    one_hot = F.one_hot(CLASSES, 5).float()
    torch.testing.assert_close(soft_cross_entropy(LOGITS, one_hot), hard)
    torch.testing.assert_close(classification_loss(LOGITS, CLASSES, "ce"), hard)


def test_a_mixed_clip_is_no_clip_of_class_0() -> None:
    target = torch.zeros(1, 5)
    target[0, 2], target[0, 4] = 0.7, 0.3
    # The official loop casts the labels to integers: all shares below 1 become 0.
    trap = F.cross_entropy(LOGITS[:1], target.long().argmax(1))
    got = classification_loss(LOGITS[:1], target, "ce")
    log_p = LOGITS[0].log_softmax(0)
    torch.testing.assert_close(got, -(0.7 * log_p[2] + 0.3 * log_p[4]))
    assert abs(float(got - trap)) > 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(smoothing: float) -> None:
    got = classification_loss(LOGITS, CLASSES, "ce", smoothing)
    torch.testing.assert_close(got, F.cross_entropy(LOGITS, CLASSES, label_smoothing=smoothing))
    mixed = 0.7 * F.one_hot(CLASSES, 5) + 0.3 * F.one_hot(CLASSES.flip(0), 5)
    got = classification_loss(LOGITS, mixed, "ce", smoothing)
    torch.testing.assert_close(got, F.cross_entropy(LOGITS, mixed, label_smoothing=smoothing))


def test_binary_cross_entropy_is_the_mean_over_clips_and_classes() -> None:
    p = LOGITS.double().sigmoid()
    target = F.one_hot(CLASSES, 5).double()
    wanted = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    for given in (CLASSES, target):
        got = classification_loss(LOGITS, given, "bce")
        assert float(got) == pytest.approx(float(wanted), abs=1e-6)


def test_half_precision_logits_are_scored_in_float32() -> None:
    for kind in ("ce", "bce"):
        assert classification_loss(LOGITS.bfloat16(), CLASSES, kind).dtype == torch.float32  # type: ignore[arg-type]


def test_as_soft() -> None:
    assert as_soft(torch.tensor([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    soft = torch.rand(2, 3, dtype=torch.float64)
    assert torch.equal(as_soft(soft, 3), soft.float())
