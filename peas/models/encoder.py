"""What an encoder is: patches of a log-mel in, tokens out, with what tasks may ask besides."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from peas.errors import ConfigError, NoReconstruction
from peas.models.grid import (
    Pair,
    covered,
    fold_average,
    grid_shape,
    pad_to_patch,
    unpatchify,
)
from peas.models.masked import Grid, check_grid, gather_tokens, visible_places
from peas.models.pixel_probe import PixelProbe
from peas.parts import Part

Need = Literal["decoder", "pixels", "contrast", "labels", "clips"]
"""What an objective asks for: predictions at masked patches; a pixel head that stays for PEAS; a
head of the encoder's own for InfoNCE, where it has one; classes of the data; clips as they are,
neither mixed nor moved."""

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:patch_embed\.|(?:cls_token|dist_token|reg_token|pos_embed|mask_token)$)"
)


class Pretext(NamedTuple):
    """One masked pass of an encoder."""

    tokens: Tensor
    """`[B, K, D]`, its output after the norm, special tokens first."""
    visible_tokens: Tensor
    """`[B, V, D]`, those of the visible patches, in their order."""
    decoded: Tensor | None
    """`[B, N, D']`, what predictions at every patch are made of; None = it makes none."""


class Encoder(Part, nn.Module, ABC):
    """A transformer over the patches of a log-mel, chosen in a config by its class path.

    A subclass takes its settings in `__init__`, makes its modules in `make`, where the input's
    shape is known, and gives `tokens`. It sets `patch` and `width`, and `stride` where patches
    overlap. That is enough for fine-tuning, for objectives on visible tokens, and for PEAS with
    a fitted pixel head (`reconstruction: probe`). One that predicts masked patches also overrides
    `pretext`; one that reconstructs by itself `predict` or `reconstruct`.

    Attributes:
        time_major: Order of the tokens: `t * F' + f` when True, `f * T' + t` when False, for a
            grid of F' x T' patches. Patches and masks that it is given have this order.
        special: Number of special tokens before those of the patches.
        patch: Height and width of a patch, (mel bins, frames).
        stride: Step between two patches, (mel bins, frames).
        width: Width D of a token.
        decoder_width: Width D' of what predictions are made of.
        frames: Frames T of the input.
        mels: Mel bins F of the input.
        num_classes: Number of classes C; 0 without a classifier.
        pooling: `mean` of the patch tokens, or `cls`, of the special ones.
        fc_norm: LayerNorm before the classifier; identity without classes.
        head: The classifier; identity without classes.
        contrastive_head: Tokens to patches for InfoNCE, where official files hold one.
        predicts_masked_only: Whether heads see masked patches alone, or all of them.
        reconstructs: Scalar bool, whether the model has a trained pixel head of its own.
        pixel_probe: A linear pixel head that was fitted afterwards, and takes the place of any
            other; None = there is none.
    """

    time_major: ClassVar[bool] = True
    special: int = 0
    fixed: ClassVar[tuple[str, ...]] = ()
    """Settings that a checkpoint's weights depend on."""
    predicts_masked_only: ClassVar[bool] = False
    patch: Pair = (16, 16)
    stride: Pair
    width: int
    pooling: str = "mean"
    frames: int = 0
    mels: int = 0
    num_classes: int = 0
    norm_pix: bool = False
    contrastive_head: nn.Module | None
    reconstructs: Tensor
    pixel_probe: PixelProbe | None

    def __init__(self) -> None:
        super().__init__()
        self.pixel_probe = None
        self.contrastive_head = None
        self.register_buffer("reconstructs", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_adopt_probe)  # type: ignore[no-untyped-call]

    # --- building ---------------------------------------------------------------------------

    def build(
        self,
        frames: int,
        mels: int,
        classes: int = 0,
        *,
        needs: Collection[Need] | None = None,
        norm_pix: bool = False,
    ) -> Self:
        """Makes the modules with fresh weights, and gives itself back.

        Args:
            frames: Frames T of the input.
            mels: Mel bins F of the input.
            classes: Number of classes C; 0 for pretraining.
            needs: What the objectives of a pretraining ask for; None = no pretraining.
            norm_pix: Whether predicted patches are normalised by their own mean and deviation.

        Raises:
            ConfigError: A setting is impossible for this input.
        """
        if self.pooling not in ("mean", "cls"):
            raise ConfigError(f"unknown pooling {self.pooling!r}; choose 'mean' or 'cls'")
        self.frames, self.mels, self.num_classes = frames, mels, classes
        self.norm_pix = norm_pix
        if not hasattr(self, "stride"):
            self.stride = self.patch
        self.make(needs)
        return self

    @abstractmethod
    def make(self, needs: Collection[Need] | None) -> None:
        """Makes the modules for `frames`, `mels` and `num_classes`.

        Args:
            needs: As in `build`.
        """

    def make_classifier(self) -> None:
        """Makes `fc_norm` and `head`; without classes they are identities."""
        classes = self.num_classes
        self.fc_norm: nn.Module = nn.LayerNorm(self.width) if classes else nn.Identity()
        self.head: nn.Module = nn.Linear(self.width, classes) if classes else nn.Identity()

    @property
    def built(self) -> bool:
        """Whether the modules exist."""
        return self.frames > 0

    @property
    def grid(self) -> Pair:
        """Patches along (frequency, time) of the model's own input."""
        return self.grid_of(self.frames)

    def grid_of(self, frames: int) -> Pair:
        """Patches along (frequency, time) of T frames."""
        return grid_shape(frames, self.mels, self.patch, self.stride)

    # Not properties: a subclass may have settings of these names, and sets what it knows.
    @cached_property
    def depth(self) -> int:
        """Number of blocks, by the names of the weights."""
        names = (name for name, _ in self.named_parameters() if not name.startswith("decoder."))
        found = (_BLOCK.search(name) for name in names)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 the embeddings, i + 1 block i, `depth` + 1 all behind."""
        block = None if name.startswith("decoder.") else _BLOCK.search(name)
        if block:
            return int(block[1]) + 1
        return 0 if _EMBEDDING.search(name) else self.depth + 1

    @cached_property
    def decoder_width(self) -> int:
        """Width D' of what predictions are made of."""
        return self.width

    # --- tokens -----------------------------------------------------------------------------

    @abstractmethod
    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Special tokens and visible patches after the final norm, `[B, special + V, D]`.

        Args:
            log_mel: `[B, T, F]` normalised.
            masked: `[B, N]` bool, patches that do not reach the encoder, equally many of each
                clip; None = none.
        """

    def patches(self, log_mel: Tensor) -> Tensor:
        """Cuts `[B, T, F]` into `[B, N, P]`, in the order of the tokens.

        A patch is flattened in (time, frequency) row-major order; cells past the last patch are
        left out.
        """
        rows, columns = self.grid_of(log_mel.shape[1])
        high, wide = self.patch
        cells = log_mel.unfold(1, wide, self.stride[1]).unfold(2, high, self.stride[0])
        cells = cells[:, :columns, :rows]
        if not self.time_major:
            cells = cells.transpose(1, 2)
        return cells.reshape(len(log_mel), rows * columns, wide * high)

    def pool(self, tokens: Tensor) -> Tensor:
        """One embedding a clip: `[B, special + V, D]` to `[B, D]`."""
        if self.pooling == "cls" and self.special:
            return tokens[:, : self.special].mean(dim=1)
        return tokens[:, self.special :].mean(dim=1)

    def forward(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of `[B, T, F]`; embeddings `[B, D]` when there are no classes.

        Args:
            log_mel: `[B, T, F]` normalised, of the shape that the model was built for.
            masked: `[B, N]` bool, patches that are dropped before the encoder, equally many of
                each clip: AudioMAE's masking in fine-tuning.
        """
        logits: Tensor = self.head(self.fc_norm(self.pool(self.tokens(log_mel, masked))))
        return logits

    def embedding(self, log_mel: Tensor) -> Tensor:
        """Mean of the patch tokens after the final norm, `[B, D]`."""
        return self.tokens(log_mel)[:, self.special :].mean(dim=1)

    # --- pretraining ------------------------------------------------------------------------

    def pretext(self, log_mel: Tensor, masked: Tensor, visible: Tensor) -> Pretext:
        """One masked pass.

        Args:
            log_mel: `[B, T, F]`.
            masked: `[B, N]` bool, equally many of each clip.
            visible: `[B, V]` indices of the others.
        """
        tokens = self.tokens(log_mel, masked)
        return Pretext(tokens, tokens[:, self.special :], None)

    def to_decoder(self, tokens: Tensor) -> Tensor:
        """Tokens of patches in the decoder's width: `[B, V, D]` to `[B, V, D']`."""
        return tokens

    def targets(self, patches: Tensor) -> Tensor:
        """What pixel heads are to predict: patches `[B, N, P]`, normalised if `norm_pix`."""
        return patches

    def pixels(self, decoded: Tensor) -> Tensor:
        """Predicted patches `[B, K, P]` of decoded tokens `[B, K, D']`.

        Raises:
            NoReconstruction: The encoder has no pixel head.
        """
        raise NoReconstruction(
            f"{type(self).__name__} has no pixel head, which `peas.objectives.Reconstruction` "
            "trains: choose another objective, or an encoder such as peas.models.AudioMAE"
        )

    # --- reconstruction ---------------------------------------------------------------------

    @property
    def can_reconstruct(self) -> bool:
        """Whether `reconstruct` has a pixel head."""
        return self.pixel_probe is not None or bool(self.reconstructs)

    def require_reconstruction(self) -> None:
        """Raises NoReconstruction when there is neither a trained pixel head nor a probe."""
        if not self.can_reconstruct:
            raise NoReconstruction(
                "this model has no trained pixel head, so it cannot reconstruct a spectrogram "
                "(MAM-CLAP, SupMAM-CLAP and official fine-tuned files have none): start from a "
                "checkpoint pretrained with reconstruction, train a linear pixel head on the "
                "frozen encoder (`model.init_args.reconstruction: probe`), or choose a strategy "
                "that needs none (`SpecAugment`, `RandomMasking`, or `PEAS` with `score: energy`)"
            )

    def require_head_for(self, hidden: Tensor | None) -> None:
        """Refuses masked patches where a probe predicts: it knows visible tokens alone.

        Raises:
            NoReconstruction: Patches are masked, and a probe is there.
        """
        if hidden is not None and self.pixel_probe is not None:
            raise NoReconstruction(
                "a linear pixel probe (`model.init_args.reconstruction: probe`) predicts visible "
                "patches alone: mask none (`PEAS` with `aux_input_mask: none`), or start from a "
                "checkpoint pretrained with reconstruction and `reconstruction: head`"
            )

    def require_trainable_pixels(self) -> None:
        """Lets an auxiliary loss train the pixel head.

        Raises:
            NoReconstruction: There is none.
        """
        self.require_reconstruction()
        raise NoReconstruction(
            f"{type(self).__name__} has no pixel head of its own that an auxiliary loss could "
            "train: set `model.init_args.aux_loss_weight` to 0"
        )

    def adopt_heads(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Makes the heads that a checkpoint brings, before its weights are copied.

        Args:
            state: Tensors by name.
            prefix: Before the model's own names.
        """

    def predict(self, log_mel: Tensor, masked: Tensor | None) -> Tensor:
        """Predicted patches `[B, N, P]` in log-mel units, in the order of the tokens.

        Args:
            log_mel: `[B, T, F]`, of whole patches where they do not overlap.
            masked: `[B, N]` bool in the order of the tokens, or None.
        """
        assert self.pixel_probe is not None
        predicted: Tensor = self.pixel_probe(self.tokens(log_mel, masked)[:, self.special :])
        return predicted

    def reconstruct(
        self, log_mel: Tensor, hidden: Tensor | None = None, *, grid: Grid = "nonoverlap"
    ) -> Tensor:
        """Reconstructs the spectrogram from its tokens: G(E(x)) of PEAS's equations 1 and 2.

        As in the literal reading of the equations, nothing is masked unless `hidden` says so. A
        length that is no multiple of the patch is padded and the result cut; where patches
        overlap, cells hold the mean, and cells under no patch the input.

        Args:
            log_mel: `[B, T, F]` normalised.
            hidden: `[B, N]` bool, masked patches of the chosen grid in *frequency-major* order,
                for every encoder.
            grid: Which patches: `nonoverlap`, those of pretraining, or `finetune`. Both are the
                model's own, unless an encoder has two grids.

        Returns:
            `[B, T, F]` in the units of `log_mel`.

        Raises:
            NoReconstruction: The weights came without a trained pixel head.
            ConfigError: The grid is unknown, or the clip shorter than a patch.
        """
        self.require_reconstruction()
        self.require_head_for(hidden)
        check_grid(grid)
        _, frames, mels = log_mel.shape
        whole = self.stride == self.patch
        padded = pad_to_patch(log_mel, self.patch) if whole else log_mel
        rows, columns = self.grid_of(padded.shape[1])
        masked = hidden
        if hidden is not None and self.time_major:
            masked = hidden.view(-1, rows, columns).transpose(1, 2).flatten(1)
        cells = self.predict(padded, masked)
        high, wide = self.patch
        if self.time_major:
            cells = cells.view(-1, columns, rows, wide, high).transpose(1, 2)
        else:
            cells = cells.view(-1, rows, columns, wide, high)
        cells = cells.transpose(3, 4).flatten(3).flatten(1, 2)
        if whole:
            return unpatchify(cells, self.patch, (rows, columns))[:, :frames, :mels]
        folded = fold_average(cells, self.patch, self.stride, frames, mels)
        time, freq = (line.to(log_mel.device) for line in self.coverage(frames, grid, mels))
        return torch.where(time[:, None] & freq, folded, log_mel)

    def patch_tokens(self, log_mel: Tensor, grid: Grid = "nonoverlap") -> tuple[Tensor, Tensor]:
        """Tokens of every patch with nothing masked, and the patches that they stand for.

        Args:
            log_mel: `[B, T, F]` normalised.
            grid: Which patches, as in `reconstruct`.

        Returns:
            `[B, N, D]` after the final norm and `[B, N, P]`, in the order of the tokens.
        """
        check_grid(grid)
        if self.stride == self.patch:
            log_mel = pad_to_patch(log_mel, self.patch)
        return self.tokens(log_mel)[:, self.special :], self.patches(log_mel)

    def token_grid(self, frames: int, grid: Grid = "nonoverlap") -> Pair:
        """Patches along (frequency, time) that `reconstruct` makes of T frames."""
        check_grid(grid)
        if self.stride != self.patch:
            return self.grid_of(frames)
        whole = -(-frames // self.patch[1]) * self.patch[1]
        tall = -(-self.mels // self.patch[0]) * self.patch[0]
        return grid_shape(whole, tall, self.patch, self.patch)

    def coverage(
        self, frames: int, grid: Grid = "nonoverlap", mels: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames `[T]` and mel bins `[F]`, boolean, on the CPU, that the grid's patches cover."""
        check_grid(grid)
        bins = self.mels if mels is None else mels
        if self.stride != self.patch:
            return covered(frames, bins, self.patch, self.stride)
        return torch.ones(frames, dtype=torch.bool), torch.ones(bins, dtype=torch.bool)

    # --- weights of others ------------------------------------------------------------------

    def import_weights(self, state: Mapping[str, Any], where: str) -> Any:
        """Fills the model from an official file of its family, or a checkpoint of ours.

        Args:
            state: Content of the file.
            where: The file, for errors.

        Returns:
            An `ImportReport`.

        Raises:
            CheckpointError: The weights cannot be used. The model is then unchanged.
        """
        from peas.models.checkpoints.own import load_own

        return load_own(self, state, where)

    def import_vit(self, state: dict[str, Tensor], report: Any) -> dict[str, Tensor]:
        """Weights of an ImageNet vision transformer with timm's keys, as this model's `encoder`.

        Args:
            state: With a kernel of one colour, (mel bins, frames).
            report: An `ImportReport`, to be told what became of what.

        Raises:
            ConfigError: This encoder takes none.
        """
        raise ConfigError(
            f"`model.init_args.pretrained`: {type(self).__name__} takes no `timm:` weights: give "
            "a checkpoint of its own, or null"
        )


def drop(tokens: Tensor, masked: Tensor | None) -> Tensor:
    """Leaves masked patches out: `[B, N, D]` and `[B, N]` bool to `[B, V, D]`."""
    return tokens if masked is None else gather_tokens(tokens, visible_places(masked))


def _adopt_probe(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    *_: object,
) -> None:
    """Gives the model the probe that the state has, before the weights are copied."""
    weight = state.get(prefix + "pixel_probe.weight")
    if weight is not None and isinstance(module, Encoder) and module.pixel_probe is None:
        cells, width = weight.shape
        module.pixel_probe = PixelProbe(width, cells).to(module.reconstructs.device)
