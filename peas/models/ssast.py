"""SSAST: a transformer pretrained by discriminating and reconstructing masked patches."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from peas.models.encoder import Encoder, Need, Pretext, drop
from peas.models.patches import (
    Grid,
    Pair,
    check_grid,
    fold_average,
    gather_tokens,
    grid_shape,
    other_geometry,
    pad_to_patch,
    patchify,
    resize_positions,
    sample_positions,
    unpatchify,
)
from peas.models.vit import SpectrogramTransformer

STRIDE = (10, 10)
"""Step between 16 x 16 patches in fine-tuning; patches of frames have a step of one frame."""


class SSAST(Encoder):
    """Self-supervised audio spectrogram transformer (Gong et al., 2022).

    Serves pretraining, classification and PEAS with one set of weights. The generative head G
    stays after pretraining, because PEAS (its equations 1 and 2) needs `reconstruct` while
    the model is being fine-tuned; the official fine-tuning code throws G away.

    There are two tables of positions. `encoder.pos_embed` belongs to the model's own grid and is
    trained. `pretrain_pos_embed` is the table that G was trained with; it is frozen, and cut to
    the clip for `reconstruct` on the non-overlapping grid. A model without classes whose stride is
    its patch *is* a pretraining model: its own grid is then the pretraining grid, and its live
    `encoder.pos_embed` replaces the frozen table.

    Attributes:
        encoder: `SpectrogramTransformer`.
        mask_embed: `[1, 1, D]`, replaces a masked patch.
        contrastive_head: Tokens to patches for InfoNCE, D to P bins.
        generative_head: Tokens to patches for reconstruction (G), D to P bins.
        fc_norm: LayerNorm before the classifier; identity without classes.
        head: The classifier; identity without classes.
        pretrain_pos_embed: `[1, 2 + N0, D]`, frozen table of the pretraining grid.
        reconstructs: Scalar bool; False when the weights came without a trained G.
        geometry: `[6]` int64: frames, mels, stride (frequency, time), pretraining frames and
            mels. With the weights' shapes it makes a checkpoint self-describing.
    """

    time_major = False
    special = 2
    fixed = ("size", "patch", "stride", "pooling")
    predicts_masked_only = True
    normalises_pixels = False
    pretrain_pos_embed: Tensor
    geometry: Tensor

    def __init__(
        self,
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        drop_path: float = 0.0,
    ) -> None:
        """Note the settings.

        Args:
            size: `mini` (128 wide, 4 blocks), `tiny` (192, 12), `small` (384, 12), `base` (768, 12)
                or `large` (1024, 24); the paper has tiny, small and base.
            patch: Patch shape (mel bins, frames): (16, 16), or (128, 2) for frame models.
            stride: Step between patches (mel bins, frames). Null is (10, 10) in fine-tuning, as
                SSAST overlaps its patches there (frame models have (128, 1)), and the patch in
                pretraining.
            pooling: `mean` of the patch tokens (official default), or `cls`, the mean of the two
                special tokens.
            drop_path: Rate of stochastic depth of the last block; it rises linearly from 0.
        """
        super().__init__()
        self.size, self.patch = size, (patch[0], patch[1])
        self.pooling, self.drop_path = pooling, drop_path

    def make(self, needs: Collection[Need] | None) -> None:
        """Makes the modules, initialised as in the official code."""
        overlapping = STRIDE if self.patch == (16, 16) else (self.patch[0], 1)
        default = overlapping if self.num_classes else self.patch
        rows, columns = self._given["stride"] or default
        stride = (rows, columns)
        self.settle(stride=stride)
        self.encoder = SpectrogramTransformer(
            self.size,
            frames=self.frames,
            mels=self.mels,
            patch=self.patch,
            stride=stride,
            drop_path=self.drop_path,
        )
        self.width = self.encoder.width
        bins = math.prod(self.patch)
        self.mask_embed = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, 1, self.width)))
        contrast = self.contrastive_head = _prediction_head(self.width, bins)
        self.generative_head = _prediction_head(self.width, bins)
        self.make_classifier()
        # DistributedDataParallel would wait for gradients of unused weights.
        needed = () if self.num_classes else ("contrast", "pixels") if needs is None else needs
        contrast.requires_grad_("contrast" in needed)
        self.generative_head.requires_grad_("pixels" in needed)
        self.mask_embed.requires_grad_(not self.num_classes)
        # PEAS must not be given what a head reconstructs that was not trained with this encoder.
        self.reconstructs.fill_(bool(self.num_classes) or "pixels" in needed)
        self.register_buffer("pretrain_pos_embed", torch.empty(0))
        self.register_buffer("geometry", torch.empty(0, dtype=torch.int64))
        own = (self.frames, self.mels) if self.pretraining else (1024, 128)
        self.set_pretraining_grid(*own)
        self.register_load_state_dict_pre_hook(_adopt_geometry)  # type: ignore[no-untyped-call]

    @property
    def pretraining(self) -> bool:
        """Whether this is a pretraining model: no classes, and patches that do not overlap."""
        return self.num_classes == 0 and self.stride == self.patch

    @property
    def pretraining_grid(self) -> Pair:
        """Patches along (frequency, time) of `pretrain_pos_embed`."""
        return grid_shape(self.pretrain_frames, self.pretrain_mels, self.patch, self.patch)

    def set_pretraining_grid(self, frames: int, mels: int) -> None:
        """Make room for the table of another pretraining shape; a kept shape keeps its table.

        Args:
            frames: Frames T of the pretraining input.
            mels: Mel bins F of the pretraining input.
        """
        self.pretrain_frames, self.pretrain_mels = frames, mels
        grid, special = self.pretraining_grid, self.special
        shape = (1, special + grid[0] * grid[1], self.encoder.width)
        if self.pretrain_pos_embed.shape != shape:
            table = torch.empty(shape, device=self.mask_embed.device)
            self.pretrain_pos_embed = nn.init.trunc_normal_(table, std=0.02)
        geometry = (self.encoder.frames, self.mels, *self.stride, frames, mels)
        self.geometry = torch.tensor(geometry, device=self.mask_embed.device)

    def forward_features(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Encode a spectrogram on the model's own grid.

        Args:
            log_mel: `[B, T, F]` normalised.
            masked: `[B, N]` bool; these patches' embeddings give way to `mask_embed` before the
                positions are added, as in SSAST's pretraining.

        Returns:
            `[B, 2 + N, D]`: class token, distillation token, patches.

        Raises:
            ConfigError: If T and F are not what the model was built for.
        """
        self.encoder.check(log_mel)
        return self.encoder.encode(self._mask(self.encoder.embed(log_mel), masked))

    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """As in `Encoder`; `forward_features` replaces masked patches by `mask_embed`.

        Raises:
            ConfigError: T and F are not what the model was built for.
        """
        if masked is None:
            return self.forward_features(log_mel)
        self.encoder.check(log_mel)
        tokens = self.encoder.embed(log_mel) + self.encoder.pos_embed[:, self.special :]
        return self.encoder.run(drop(tokens, masked))

    def pretext(self, log_mel: Tensor, masked: Tensor, visible: Tensor) -> Pretext:
        """Masked patches give way to `mask_embed`; all tokens are decoded."""
        tokens = self.forward_features(log_mel, masked)
        decoded = tokens[:, self.special :]
        return Pretext(tokens, gather_tokens(decoded, visible), decoded)

    def pixels(self, decoded: Tensor) -> Tensor:
        """Patches of the generative head G."""
        predicted: Tensor = self.generative_head(decoded)
        return predicted

    def require_trainable_pixels(self) -> None:
        """Lets an auxiliary loss train G."""
        self.require_reconstruction()
        self.generative_head.requires_grad_(True)

    def patches(self, log_mel: Tensor) -> Tensor:
        """Cuts `[B, T, F]` into `[B, N, P]`, frequency-major; patches are so too."""
        if self.stride == self.patch:
            return patchify(log_mel, self.patch)
        image = log_mel.transpose(1, 2).unsqueeze(1)
        return functional.unfold(image, self.patch, stride=self.stride).transpose(1, 2)

    def import_weights(self, state: Mapping[str, Any], where: str) -> Any:
        """Fills the model from an official SSAST file or a checkpoint of ours."""
        from peas.models.weights import SSAST as files

        return files.load(self, state, where)

    def import_vit(self, state: dict[str, Tensor], report: Any) -> dict[str, Tensor]:
        """AST's start: positions of the image, cut or interpolated; two special tokens."""
        from peas.models.weights.imagenet import tokens_of_ssast

        return tokens_of_ssast(self, state, report)

    def embedding(self, log_mel: Tensor) -> Tensor:
        """Mean of the patch tokens after the final norm, `[B, D]`; T may differ from the model's.

        The positions are cut or interpolated to the clip as for fine-tuning.
        """
        _, frames, mels = log_mel.shape
        shape = grid_shape(frames, mels, self.patch, self.stride)
        positions = self._positions(self.encoder.pos_embed, self.encoder.grid, shape)
        tokens = self.encoder.encode(self.encoder.embed(log_mel), positions)
        return tokens[:, self.special :].mean(dim=1)

    def reconstruct(
        self, log_mel: Tensor, masked: Tensor | None = None, *, grid: Grid = "nonoverlap"
    ) -> Tensor:
        """Reconstruct the spectrogram from its tokens: G(E(x)) of PEAS's equations 1 and 2.

        The caller chooses gradients, precision and train or eval mode; with `drop_path` above 0
        in train mode the result is random.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's. A length that is no
                multiple of the patch is padded with zeros and the result cut.
            masked: `[B, N]` bool, patches of the chosen grid that are masked.
            grid: `nonoverlap`, the grid that G was trained on (stride = patch, pretraining
                positions), or `finetune`, the model's own stride and positions. There,
                overlapping bins hold their mean and bins under no patch keep the input's
                value, so that they have no error; `coverage` names them.

        Returns:
            `[B, T, F]` in the units of `log_mel`.

        Raises:
            NoReconstruction: If the weights came without a trained G.
            ConfigError: If the grid is unknown or the clip shorter than a patch of it.
        """
        self.require_reconstruction()
        self.require_head_for(masked)
        _, frames, mels = log_mel.shape
        tokens, shape = self._tokens(log_mel, masked, grid)
        head = self.generative_head if self.pixel_probe is None else self.pixel_probe
        patches = head(tokens)
        if grid == "finetune":
            folded = fold_average(patches, self.patch, self.stride, frames, mels)
            time, freq = (line.to(log_mel.device) for line in self.coverage(frames, grid, mels))
            return torch.where(time[:, None] & freq, folded, log_mel)
        return unpatchify(patches, self.patch, shape)[:, :frames, :mels]

    def patch_tokens(self, log_mel: Tensor, grid: Grid = "nonoverlap") -> tuple[Tensor, Tensor]:
        """Tokens `[B, N, D]` after the final norm and patches `[B, N, P]`, frequency-major.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's.
            grid: As in `reconstruct`.
        """
        tokens, _ = self._tokens(log_mel, None, grid)
        if grid == "finetune":
            return tokens, self.patches(log_mel)
        return tokens, patchify(pad_to_patch(log_mel, self.patch), self.patch)

    def pads(self, grid: Grid) -> bool:
        """The pretraining grid pads; fine-tuning leaves bins beyond the last patch out."""
        check_grid(grid)
        return grid == "nonoverlap"

    def _positions(self, table: Tensor, source: Pair, target: Pair) -> Tensor:
        return resize_positions(table, self.special, source, target)

    def _mask(self, patches: Tensor, masked: Tensor | None) -> Tensor:
        if masked is None:
            return patches
        return torch.where(masked.unsqueeze(-1), self.mask_embed.to(patches.dtype), patches)

    def _tokens(self, log_mel: Tensor, masked: Tensor | None, grid: Grid) -> tuple[Tensor, Pair]:
        """Tokens `[B, N, D]` of the chosen grid's patches, and its shape."""
        check_grid(grid)
        stride = self.patch
        if grid == "finetune":
            stride = self.stride
        else:
            log_mel = pad_to_patch(log_mel, self.patch)
        shape = grid_shape(log_mel.shape[1], log_mel.shape[2], self.patch, stride)
        own = (self.encoder.pos_embed, self.encoder.grid, shape)
        if stride == self.stride and (grid == "finetune" or not self.reconstructs):
            positions = self._positions(*own)
        elif self.pretraining or self.reconstructs:
            table = self.encoder.pos_embed if self.pretraining else self.pretrain_pos_embed
            positions = self._positions(table, self.pretraining_grid, shape)
        else:
            # No table was trained for this grid: a probe's patches are between the model's own.
            step = (self.patch[0] / self.stride[0], self.patch[1] / self.stride[1])
            positions = sample_positions(*own, special=self.special, step=step)
        patches = self._mask(self.encoder.embed(log_mel, stride), masked)
        return self.encoder.encode(patches, positions)[:, self.special :], shape


def _prediction_head(width: int, bins: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, bins))


def _adopt_geometry(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    local_metadata: dict[str, object],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Give the frozen table the shape that the state's has, before the weights are copied."""
    geometry = state.get(prefix + "geometry")
    if geometry is None or not isinstance(module, SSAST):
        return
    refused = other_geometry(module.geometry, geometry)
    if refused:
        error_msgs.append(refused)
    elif not module.pretraining:
        module.set_pretraining_grid(*geometry[4:6].tolist())
