"""What an objective of pretraining is, and one masked pass that every objective is computed on."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from peas.data.batch import Batch
from peas.errors import ConfigError
from peas.masking.patches import masked_ids
from peas.models.encoder import Encoder, Need
from peas.models.patches import visible_indices
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
    """Predictions to be compared with the best constant. K rows a clip, X bins a row."""

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
        decoded: `[B, N, D']`, input of the prediction heads; None for an encoder
            that predicts nothing.
        sound: `[B, N]` bool, patches all of whose frames are real sound.
        rand: Uniform random numbers `[B, K]` on the CPU, of a name and K: of epoch and step,
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
    """An objective's result for a batch.

    Attributes:
        loss: Scalar, before the weight.
        clips: Number of clips it was computed on; None = all.
        rows: To be compared with the best constant.
        targets: `[L, C]` classes of the clips it was computed on.
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
    """Settings that a run cannot change when it resumes."""
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
        """What a checkpoint must agree with besides the settings, by name."""
        return {}

    def description(self) -> str:
        """Logged when a run starts; empty by default."""
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
        """Metrics of an evaluation besides the loss, by name, and resets."""
        return {}


class Losses(NamedTuple):
    """What the passes of a batch gave."""

    total: Tensor
    terms: dict[str, Term]
    weights: dict[str, float]
    views: dict[str, View]
    """The pass of each objective; one and the same where they share it."""

    def gradient_norms(self) -> dict[str, Tensor]:
        """Norm of each weighted objective's gradient at the encoder's output."""
        norms = {}
        for name, term in self.terms.items():
            (gradient,) = torch.autograd.grad(
                self.weights[name] * term.loss,
                self.views[name].tokens,
                retain_graph=True,
                allow_unused=True,
            )
            zero = torch.zeros((), device=term.loss.device)
            norms[name] = zero if gradient is None else gradient.float().norm()
        return norms


def encode(
    model: Encoder,
    batch: Batch,
    masked: Tensor,
    *,
    rand: Callable[[str, int], Tensor],
    total: Callable[[Tensor], Tensor],
    processes: int,
) -> View:
    """Encodes a batch with some patches masked, and decodes where the encoder does.

    Args:
        model: The encoder.
        batch: With `log_mel` and `valid`.
        masked: `[B, N]` bool; on the CPU, where the number of patches needs no synchronisation.
        rand: As in `View`.
        total: As in `View`.
        processes: As in `View`.
    """
    device = batch["log_mel"].device
    visible = visible_indices(masked).to(device, non_blocking=True)
    masked_at = masked_ids(masked).to(device, non_blocking=True)
    on_device = masked.to(device, non_blocking=True)
    passed = model.pretext(batch["log_mel"], on_device, visible)
    return View(
        model=model,
        batch=batch,
        patches=model.patches(batch["log_mel"]),
        masked=on_device,
        masked_at=masked_at,
        visible=visible,
        tokens=passed.tokens,
        visible_tokens=passed.visible_tokens,
        decoded=passed.decoded,
        sound=sound_patches(model, batch["valid"]),
        rand=rand,
        total=total,
        processes=processes,
    )


def compose(objectives: Mapping[str, Objective], view: Callable[[str], View]) -> Losses:
    """Takes every objective, and their weighted sum.

    Args:
        objectives: By name.
        view: The pass of an objective, by its name.
    """
    terms, views = {}, {}
    for name, objective in objectives.items():
        views[name] = view(name)
        terms[name] = objective(views[name])
    weights = {name: objective.weight for name, objective in objectives.items()}
    total = torch.stack([weights[name] * term.loss for name, term in terms.items()]).sum()
    return Losses(total, terms, weights, views)


def sound_patches(model: Encoder, valid: Tensor) -> Tensor:
    """`[B, N]` bool: patches all of whose frames are real sound.

    Args:
        model: Knows the patches.
        valid: `[B, T]` bool.
    """
    rows, columns = model.grid
    frames = valid.unfold(1, model.patch[1], model.stride[1])[:, :columns].all(dim=2)
    if model.time_major:
        return frames.unsqueeze(2).expand(-1, -1, rows).flatten(1)
    return frames.unsqueeze(1).expand(-1, rows, -1).flatten(1)


def patch_errors(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each patch: two times `[B, M, P]` to `[B, M]` float32."""
    return (predictions.float() - targets.detach().float()).square().mean(dim=2)


def check_objectives(
    parts: Mapping[str, Objective], left_out: set[str], roll_gain: str, encoder: Encoder
) -> None:
    """Refuse objectives that are impossible together, or with the encoder.

    Args:
        parts: By name.
        left_out: Names that are null in the config.
        roll_gain: Augmentation of the waveforms.
        encoder: Of the run.

    Raises:
        ConfigError: It names the key.
    """
    for name in sorted(left_out):
        # A misspelt name would leave the objective in.
        if meant := difflib.get_close_matches(name, parts, n=1, cutoff=0.8):
            raise ConfigError(
                f"`model.init_args.objectives.{name}` is null, and there is no such objective: is "
                f"`{meant[0]}` meant?"
            )
    key = "`model.init_args.objectives`"
    if not parts:
        raise ConfigError(f"{key} is empty: give one objective at least")
    metrics = [metric for part in parts.values() for metric in _logged(part)]
    if twice := sorted({metric for metric in metrics if metrics.count(metric) > 1}):
        raise ConfigError(
            f"{key} has two objectives that log {twice[0]}, which would be one metric: keep one of "
            "them, or give a subclass with another name for it"
        )
    taken = {"loss", *metrics}
    for name, part in parts.items():
        # Logs and weights are called by it. ModuleDict refuses names of its own attributes.
        if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            raise ConfigError(
                f"{key} has the name {name!r}, which torch cannot take: give a word of letters, "
                "digits and underscores that is no method of torch.nn.ModuleDict"
            )
        if name in taken:
            raise ConfigError(
                f"{key} has the name {name!r}, which another metric has in the log: give another "
                "name"
            )
        if not part.weight > 0:
            raise ConfigError(
                f"`model.init_args.objectives.{name}.init_args.weight` is {part.weight}: give a "
                "number above 0, or null instead of the objective to leave it out"
            )
        if "pixels" in part.needs and not encoder.normalises_pixels and norm_pix(part):
            raise ConfigError(
                f"`model.init_args.objectives.{name}.init_args.norm_pix` is true, and the head of "
                f"{type(encoder).__name__} predicts log-mels as they are: set norm_pix to false"
            )
        if "clips" in part.needs and roll_gain != "none":
            raise ConfigError(
                f"`model.init_args.roll_gain` is {roll_gain}, and the targets of "
                f"`model.init_args.objectives.{name}` belong to the clip as it is: set roll_gain "
                "to none"
            )


def norm_pix(part: Objective) -> bool:
    """Whether an objective predicts normalised patches."""
    return bool(getattr(part, "norm_pix", True))


def _logged(part: Objective) -> tuple[str, ...]:
    return (*part.metrics, *part.baselines, *part.sums)
