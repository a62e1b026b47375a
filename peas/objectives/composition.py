"""One pass of masked audio modelling: visible patches are encoded, every objective is taken."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from peas.data.batch import Batch
from peas.models.mae import MaskedAutoencoder
from peas.models.masked import visible_places
from peas.objectives.base import Objective, Term, View
from peas.trivial import valid_patches


class Losses(NamedTuple):
    """What one pass gave."""

    total: Tensor
    terms: dict[str, Term]
    weights: dict[str, float]
    tokens: Tensor
    """`[B, 1 + V, D]`, the encoder's output."""

    def gradient_norms(self) -> dict[str, Tensor]:
        """Norm of each weighted objective's gradient at the encoder's output."""
        norms = {}
        for name, term in self.terms.items():
            (gradient,) = torch.autograd.grad(
                self.weights[name] * term.loss, self.tokens, retain_graph=True, allow_unused=True
            )
            zero = torch.zeros((), device=term.loss.device)
            norms[name] = zero if gradient is None else gradient.float().norm()
        return norms


def encode(
    model: MaskedAutoencoder,
    batch: Batch,
    masked: Tensor,
    *,
    rand: Callable[[str, int], Tensor],
    total: Callable[[Tensor], Tensor],
    processes: int,
) -> View:
    """Encode the visible patches of a batch, and decode where there is a decoder.

    Args:
        model: The autoencoder.
        batch: With `log_mel` and `valid`.
        masked: `[B, N]` bool; on the CPU, where nobody waits for the number of patches.
        rand: As in `View`.
        total: As in `View`.
        processes: As in `View`.
    """
    device = batch["log_mel"].device
    visible = visible_places(masked).to(device)
    patches = model.encoder.patches(batch["log_mel"])
    tokens = model.encoder.norm(model.encoder(patches, visible))
    decoded = None
    if model.decoder is not None:
        decoded = model.decoder(tokens, visible, patches.shape[1])
    return View(
        model=model,
        batch=batch,
        patches=patches,
        masked=masked.to(device),
        visible=visible,
        tokens=tokens,
        decoded=decoded,
        sound=sound_patches(model, batch["valid"]),
        rand=rand,
        total=total,
        processes=processes,
    )


def compose(objectives: Mapping[str, Objective], view: View) -> Losses:
    """Take every objective of one pass, and their weighted sum."""
    terms = {name: objective(view) for name, objective in objectives.items()}
    weights = {name: objective.weight for name, objective in objectives.items()}
    total = torch.stack([weights[name] * term.loss for name, term in terms.items()]).sum()
    return Losses(total, terms, weights, view.tokens)


def sound_patches(model: MaskedAutoencoder, valid: Tensor) -> Tensor:
    """`[B, N]` bool: patches all of whose frames are real sound.

    Args:
        model: Knows the patches.
        valid: `[B, T]` bool.
    """
    rows, columns = model.grid
    if model.stride == model.patch:
        covered = valid[:, : columns * model.patch[1]]
        return valid_patches(covered, (rows, columns), time_major=True)
    frames = valid.unfold(1, model.patch[1], model.stride[1])[:, :columns].all(dim=2)
    return frames.unsqueeze(2).expand(-1, -1, rows).flatten(1)
