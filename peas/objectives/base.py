"""What an objective of pretraining is: a loss, its heads, and the baseline it is held against."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.models.encoder import Encoder, Need
from peas.parts import Part


class BuildInfo(NamedTuple):
    """What is known when the modules are built."""

    width: int
    """Width D of the encoder's tokens."""
    decoder_width: int
    """Width D' of `View.decoded`."""
    bins: int
    """Bins P of a patch."""
    classes: int
    """Number of classes C, perhaps 0."""
    model: Encoder
    """With the weights that the run starts from, to be copied by a moving average."""


class Rows(NamedTuple):
    """Predictions to be held against the best constant. K rows a clip, X bins a row."""

    errors: Tensor
    """`[B, K]` mean squared error."""
    targets: Tensor
    """`[B, K, X]`."""
    valid: Tensor
    """`[B, K]` bool, rows that count."""


@dataclass(frozen=True)
class View:
    """One pass over a batch: what every objective is given.

    Attributes:
        model: The encoder. For another pass (a second view, a target from a moving average) call
            it again, or a copy of it.
        batch: With `log_mel` `[B, T, F]`, `valid`, `target` and `labelled`.
        patches: `[B, N, P]`, in the order of the model's tokens, as all of N patches here.
        masked: `[B, N]` bool.
        masked_at: `[B, M]` indices of the masked patches.
        visible: `[B, V]` indices of the visible patches.
        tokens: `[B, K, D]`, the encoder's output after its norm, special tokens first.
        visible_tokens: `[B, V, D]`, those of the visible patches.
        decoded: `[B, N, D']`, what predictions at every patch are made of; None for an encoder
            that makes none.
        sound: `[B, N]` bool, patches all of whose frames are real sound.
        rand: Uniform random numbers `[B, K]` on the CPU, of a name and K: of the place in training,
            or in evaluation of the clip.
        total: A number here to its sum over all processes.
        processes: How many they are.
    """

    model: Encoder
    batch: Batch
    patches: Tensor
    masked: Tensor
    masked_at: Tensor
    visible: Tensor
    tokens: Tensor
    visible_tokens: Tensor
    decoded: Tensor | None
    sound: Tensor
    rand: Callable[[str, int], Tensor]
    total: Callable[[Tensor], Tensor]
    processes: int

    def require_decoded(self) -> Tensor:
        """`decoded`.

        Raises:
            ConfigError: The encoder predicts nothing at masked patches.
        """
        if self.decoded is None:
            raise ConfigError(
                f"`model.init_args.encoder`: {type(self.model).__name__} predicts nothing at "
                "masked patches, which an objective needs: choose peas.models.AudioMAE or "
                "peas.models.SSAST, or give it `pretext`"
            )
        return self.decoded


@dataclass(frozen=True)
class Term:
    """What an objective makes of a batch.

    Attributes:
        loss: Scalar, before the weight.
        clips: Number of clips that it stands for; None = all.
        rows: To be held against the best constant.
        targets: `[L, C]` classes of the clips that it stands for.
        predicted: `[B, N, X]` predictions of every patch, for plots.
        sums: Numbers that are added up over an epoch, by name.
        metrics: Means over the clips, such as an accuracy, by name; without gradient.
    """

    loss: Tensor
    clips: int | None = None
    rows: Rows | None = None
    targets: Tensor | None = None
    predicted: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Part, nn.Module, ABC):
    """One term of a pretraining loss, made in a config under a name of the user's own.

    A subclass takes its settings in `__init__` and makes heads and meters in `build`; its
    `forward` takes a `View`. Everything else may be left out.

    Args:
        weight: Of its loss in the sum.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    fixed: ClassVar[tuple[str, ...]] = ()
    """Settings that a run cannot change when it goes on."""
    sums: ClassVar[tuple[str, ...]] = ()
    """Names in `Term.sums`."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names in `Term.metrics`."""
    baselines: ClassVar[tuple[str, ...]] = ()
    """Names in `baseline()`."""
    min_batch_size: int = 1
    """Clips that a training batch of one process must have."""
    stream: ClassVar[str] = "own"
    """Names the random numbers of its masks, where each objective has a pass of its own."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def prepare(self, data: Any) -> None:
        """Looks at the data module, before `build`; refuses what cannot work.

        Args:
            data: The run's `ClipDataModule`.
        """

    def build(self, info: BuildInfo) -> None:
        """Makes heads and meters."""

    @abstractmethod
    def forward(self, view: View) -> Term:
        """The loss of a batch."""

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with beside the settings, by name."""
        return {}

    def description(self) -> str:
        """What the log says of it when a run starts; nothing by default."""
        return ""

    def read(self, batch: Batch) -> None:
        """Adds to a batch that is still on the CPU."""

    def move(self, device: torch.device) -> None:
        """Follows the model; for what is no part of the module tree."""

    def after_step(self, model: Encoder) -> None:
        """Follows the weights after an optimiser step: for a moving average."""

    def evaluate(self, term: Term) -> None:
        """Counts a batch of evaluation for `baseline`."""

    def baseline(self) -> dict[str, Tensor]:
        """Figures of an evaluation besides the loss, by name; begins anew."""
        return {}
