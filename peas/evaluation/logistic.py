"""Logistic regression on frozen features: the linear probe.

N clips, D features, C classes.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

GRADIENT = 1e-6
"""Largest slope of the mean loss at which a fit ends; scikit-learn's default is 1e-4."""
ITERATIONS = 2000


class Linear(NamedTuple):
    """A linear classifier of standardised features.

    Attributes:
        weight: `[D, C]` float64.
        bias: `[C]` float64.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits `[K, C]` of features `[K, D]`."""
        return features @ self.weight + self.bias


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Features in float64 with mean 0 and variance 1 over the training clips.

    Args:
        train: `[..., M, D]`.
        others: `[..., K, D]`, scaled by the training clips' moments.

    Returns:
        The training features, then the others.
    """
    train = train.double()
    mean, std = train.mean(dim=-2, keepdim=True), train.std(dim=-2, correction=0, keepdim=True)
    # A constant feature would be divided by zero.
    std = torch.where(std == 0, 1.0, std)
    return [(part.double() - mean) / std for part in (train, *others)]


def fit(features: Tensor, targets: Tensor, c: float, *, multi_label: bool = False) -> Linear:
    """Logistic regression: multinomial, or one regression a class for clips of several classes.

    The minimum of |weight|² / 2 + C Σ loss, which scikit-learn's `LogisticRegression` finds too.
    With two classes of one clip each, scikit-learn fits one regression instead, at twice the C.

    Args:
        features: `[N, D]`, standardised.
        targets: `[N, C]`, non-zero where a clip is of a class.
        c: Inverse strength of the penalty.
        multi_label: Whether clips may be of any number of classes.
    """
    features, targets = features.double(), targets.double()
    basis, penalty = whitening(features, 1 / (c * len(features)))
    features = features @ basis
    weight = features.new_zeros(features.shape[1], targets.shape[1])
    bias = features.new_zeros(targets.shape[1])

    def loss() -> Tensor:
        logits = features @ weight + bias
        gradient = logits.sigmoid() if multi_label else logits.softmax(dim=1)
        gradient = (gradient - targets) / len(targets)
        weight.grad = features.T @ gradient + penalty * weight
        bias.grad = gradient.sum(dim=0)
        return mean_loss(logits, targets, multi_label) + (penalty * weight.square()).sum() / 2

    minimise(loss, [weight, bias])
    return Linear(basis @ weight, bias)


def whitening(features: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Coordinates in which the loss is about equally curved in all directions.

    Correlated features would cost L-BFGS hundreds of iterations. A weight `[R, C]` in these
    coordinates is `basis @ weight` in features; directions that no clip has are left out.

    Args:
        features: `[N, D]` float64.
        strength: Of the penalty on a weight beside a mean loss.

    Returns:
        Basis `[D, R]`, and `[R, 1]` the strength on each coordinate.
    """
    triangle = torch.linalg.qr(features, mode="r").R
    _, values, directions = torch.linalg.svd(triangle, full_matrices=False)
    # A probability's derivative is 1/4 at most: the curvature at the start, of two classes.
    scale = (values.square() / (4 * len(features)) + strength).rsqrt()
    return directions.T * scale, (strength * scale.square()).unsqueeze(1)


def mean_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Mean over clips of the loss of logits `[N, C]`, summed over classes if multi-label."""
    if multi_label:
        loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return loss / len(logits)
    return functional.cross_entropy(logits, targets)


def minimise(
    loss: Callable[[], Tensor], parameters: Iterable[Tensor], slope: float = GRADIENT
) -> None:
    """Minimises a loss over all clips by L-BFGS; no random number is used.

    Args:
        loss: Of the parameters' current values; it sets their gradients.
        parameters: Float64, changed in place.
        slope: Largest one of the loss at which the search ends.
    """
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=slope,
        tolerance_change=1e-13,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(loss)  # type: ignore[no-untyped-call]
