"""SSAST: a spectrogram transformer pretrained by telling and drawing its hidden patches."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from peas.errors import ConfigError, NoReconstruction
from peas.models.encoder import SpectrogramTransformer
from peas.models.grid import (
    Pair,
    covered,
    fold_average,
    grid_shape,
    pad_to_patch,
    patchify,
    resize_positions,
    sample_positions,
    unpatchify,
)
from peas.models.masked import (
    Grid,
    MaskedModel,
    check_grid,
    gather_tokens,
    other_geometry,
    visible_places,
)


class SSAST(MaskedModel):
    """Self-supervised audio spectrogram transformer (Gong et al., 2022).

    Serves pretraining, classification and PEAS with one set of weights. The generative head G
    stays after pretraining, because PEAS (its equations 1 and 2) asks for `reconstruct` while
    the model is being fine-tuned; the official fine-tuning code throws G away.

    There are two tables of positions. `encoder.pos_embed` belongs to the model's own grid and is
    trained. `pretrain_pos_embed` is the table that G was trained with; it is frozen, and cut to
    the clip for `reconstruct` on the non-overlapping grid. A model without classes whose stride is
    its patch *is* a pretraining model: its own grid is then the pretraining grid, and its live
    `encoder.pos_embed` is used in the frozen table's place.

    Attributes:
        encoder: `SpectrogramTransformer`.
        mask_embed: `[1, 1, D]`, what stands for a hidden patch.
        contrastive_head: Tokens to patches for InfoNCE, D to P cells.
        generative_head: Tokens to patches for reconstruction (G), D to P cells.
        fc_norm: LayerNorm before the classifier; identity without classes.
        head: The classifier; identity without classes.
        pretrain_pos_embed: `[1, 2 + N0, D]`, frozen table of the pretraining grid.
        reconstructs: Scalar bool; False when the weights came without a trained G.
        geometry: `[6]` int64: frames, mels, stride (frequency, time), pretraining frames and
            mels. With the weights' shapes it makes a checkpoint self-describing.
    """

    time_major = False
    pretrain_pos_embed: Tensor
    reconstructs: Tensor
    geometry: Tensor

    def __init__(
        self,
        size: str = "base",
        *,
        num_classes: int = 0,
        frames: int = 1024,
        mels: int = 128,
        patch: Pair = (16, 16),
        stride: Pair | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        drop_path: float = 0.0,
        pretrain_frames: int = 1024,
        pretrain_mels: int = 128,
    ) -> None:
        """Build the model with fresh weights, begun as the official code begins them.

        Args:
            size: `tiny`, `small` or `base`.
            num_classes: Number of classes C; 0 for pretraining, then `forward` gives embeddings.
            frames: Number of frames T of the input.
            mels: Number of mel bins F of the input.
            patch: Height and width of a patch, (mel bins, frames).
            stride: Step between patches; by default the patch. The SSAST recipes fine-tune with
                (10, 10) for 16 x 16 patches and (128, 1) for 128 x 2.
            pooling: `mean` of the patch tokens, or `cls`, the mean of the two special tokens.
            drop_path: Rate of stochastic depth of the last block; it rises linearly from 0.
            pretrain_frames: Frames of the pretraining input. A loaded checkpoint overrules it;
                a pretraining model (no classes, stride = patch) uses `frames`.
            pretrain_mels: Mel bins of the pretraining input, under the same rule.

        Raises:
            ConfigError: If a size, pooling or shape is impossible.
        """
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ConfigError(f"unknown pooling {pooling!r}; choose 'mean' or 'cls'")
        self.encoder = SpectrogramTransformer(
            size, frames=frames, mels=mels, patch=patch, stride=stride, drop_path=drop_path
        )
        width, cells = self.encoder.width, math.prod(patch)
        self.num_classes = num_classes
        self.pooling = pooling
        self.patch = self.encoder.patch
        self.stride = self.encoder.stride
        self.mask_embed = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, 1, width)))
        self.contrastive_head = _prediction_head(width, cells)
        self.generative_head = _prediction_head(width, cells)
        self.fc_norm: nn.Module = nn.LayerNorm(width) if num_classes else nn.Identity()
        self.head: nn.Module = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        if num_classes:
            # Fine-tuning sends no gradient to these, and DistributedDataParallel stops on
            # parameters that wait for one in vain.
            for unused in (self.contrastive_head, self.generative_head):
                unused.requires_grad_(False)
            self.mask_embed.requires_grad_(False)
        self.register_buffer("reconstructs", torch.tensor(True))
        self.register_buffer("pretrain_pos_embed", torch.empty(0))
        self.register_buffer("geometry", torch.empty(0, dtype=torch.int64))
        if self.pretraining:
            pretrain_frames, pretrain_mels = frames, mels
        self.set_pretraining_grid(pretrain_frames, pretrain_mels)
        self.register_load_state_dict_pre_hook(_adopt_geometry)  # type: ignore[no-untyped-call]

    @property
    def width(self) -> int:
        """Width D of a token."""
        return self.encoder.width

    @property
    def grid(self) -> Pair:
        """Patches along (frequency, time) of the model's own input."""
        return self.encoder.grid

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
        grid, special = self.pretraining_grid, self.encoder.special
        shape = (1, special + grid[0] * grid[1], self.encoder.width)
        if self.pretrain_pos_embed.shape != shape:
            table = torch.empty(shape, device=self.mask_embed.device)
            self.pretrain_pos_embed = nn.init.trunc_normal_(table, std=0.02)
        facts = (self.encoder.frames, self.encoder.mels, *self.stride, frames, mels)
        self.geometry = torch.tensor(facts, device=self.mask_embed.device)

    def forward_features(self, log_mel: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Encode a spectrogram on the model's own grid.

        Args:
            log_mel: `[B, T, F]` normalised.
            hidden: `[B, N]` bool; these patches' embeddings give way to `mask_embed` before the
                positions are added, as in SSAST's pretraining.

        Returns:
            `[B, 2 + N, D]`: class token, distillation token, patches.

        Raises:
            ConfigError: If T and F are not what the model was built for.
        """
        self.encoder.check(log_mel)
        return self.encoder.encode(self._hide(self.encoder.embed(log_mel), hidden))

    def pool(self, tokens: Tensor) -> Tensor:
        """One embedding a clip: `[B, 2 + N, D]` to `[B, D]`."""
        special = self.encoder.special
        if self.pooling == "cls":
            return tokens[:, :special].mean(dim=1)
        return tokens[:, special:].mean(dim=1)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Pool and classify: `[B, 2 + N, D]` to logits `[B, C]`, or `[B, D]` without classes."""
        logits: Tensor = self.head(self.fc_norm(self.pool(tokens)))
        return logits

    def forward(self, log_mel: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of `[B, T, F]`; embeddings `[B, D]` when there are no classes.

        Args:
            log_mel: `[B, T, F]` normalised.
            hidden: `[B, N]` bool, patches that are dropped, equally many of each clip. They do
                not reach the encoder; `forward_features` leaves `mask_embed` in their place.
        """
        if hidden is None:
            return self.forward_head(self.forward_features(log_mel))
        self.encoder.check(log_mel)
        special = self.encoder.special
        tokens = self.encoder.embed(log_mel) + self.encoder.pos_embed[:, special:]
        visible = gather_tokens(tokens, visible_places(hidden))
        return self.forward_head(self.encoder.run(visible))

    def embedding(self, log_mel: Tensor) -> Tensor:
        """Mean of the patch tokens after the final norm, `[B, D]`; T may differ from the model's.

        The positions are cut or interpolated to the clip as for fine-tuning.
        """
        _, frames, mels = log_mel.shape
        shape = grid_shape(frames, mels, self.patch, self.stride)
        positions = self._positions(self.encoder.pos_embed, self.encoder.grid, shape)
        tokens = self.encoder.encode(self.encoder.embed(log_mel), positions)
        return tokens[:, self.encoder.special :].mean(dim=1)

    def reconstruct(
        self, log_mel: Tensor, hidden: Tensor | None = None, *, grid: Grid = "nonoverlap"
    ) -> Tensor:
        """Draw the spectrogram from its tokens: G(E(x)) of PEAS's equations 1 and 2.

        The caller chooses gradients, precision and train or eval mode; with `drop_path` above 0
        in train mode the result is random.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's. A length that is no
                multiple of the patch is padded with zeros and the result cut.
            hidden: `[B, N]` bool, patches of the chosen grid that are hidden.
            grid: `nonoverlap`, the grid that G was trained on (stride = patch, pretraining
                positions), or `finetune`, the model's own stride and positions. There,
                overlapping cells hold their mean and cells under no patch keep the input's
                value, so that they bear no error; `coverage` names them.

        Returns:
            `[B, T, F]` in the units of `log_mel`.

        Raises:
            NoReconstruction: If the weights came without a trained G.
            ConfigError: If the grid is unknown or the clip shorter than a patch of it.
        """
        self.require_reconstruction()
        self.require_head_for(hidden)
        _, frames, mels = log_mel.shape
        tokens, shape = self._tokens(log_mel, hidden, grid)
        head = self.generative_head if self.pixel_probe is None else self.pixel_probe
        patches = head(tokens)
        if grid == "finetune":
            drawn = fold_average(patches, self.patch, self.stride, frames, mels)
            time, freq = (line.to(log_mel.device) for line in self.coverage(frames, grid, mels))
            return torch.where(time[:, None] & freq, drawn, log_mel)
        return unpatchify(patches, self.patch, shape)[:, :frames, :mels]

    def patch_tokens(self, log_mel: Tensor, grid: Grid = "nonoverlap") -> tuple[Tensor, Tensor]:
        """Tokens `[B, N, D]` after the final norm and patches `[B, N, P]`, frequency-major.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's.
            grid: As in `reconstruct`.
        """
        tokens, _ = self._tokens(log_mel, None, grid)
        if grid == "finetune":
            image = log_mel.transpose(1, 2).unsqueeze(1)
            return tokens, functional.unfold(image, self.patch, stride=self.stride).transpose(1, 2)
        return tokens, patchify(pad_to_patch(log_mel, self.patch), self.patch)

    def require_reconstruction(self) -> None:
        """Raises NoReconstruction when there is neither a trained generative head nor a probe."""
        if not self.can_reconstruct:
            raise NoReconstruction(
                "this model has no trained generative head, so it cannot reconstruct a "
                "spectrogram (official fine-tuned SSAST files hold none): start from a pretrained "
                "SSAST checkpoint, train a linear pixel head on the frozen encoder "
                "(`model.init_args.reconstruction: probe`), or choose a strategy that needs none "
                "(`SpecAugment`, `RandomMasking`, or `PEAS` with `score: energy`)"
            )

    def token_grid(self, frames: int, grid: Grid = "nonoverlap") -> Pair:
        """Patches along (frequency, time) that `reconstruct` makes of T frames."""
        check_grid(grid)
        if grid == "finetune":
            return grid_shape(frames, self.encoder.mels, self.patch, self.stride)
        whole = -(-frames // self.patch[1]) * self.patch[1]
        tall = -(-self.encoder.mels // self.patch[0]) * self.patch[0]
        return grid_shape(whole, tall, self.patch, self.patch)

    def coverage(
        self, frames: int, grid: Grid = "nonoverlap", mels: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cells that the grid's patches cover: those whose frame and mel bin both are.

        Args:
            frames: Number of frames T.
            grid: As in `reconstruct`.
            mels: Number of mel bins F; by default the model's.

        Returns:
            `[T]` and `[F]` boolean, on the CPU.
        """
        check_grid(grid)
        bins = self.encoder.mels if mels is None else mels
        if grid == "finetune":
            return covered(frames, bins, self.patch, self.stride)
        return torch.ones(frames, dtype=torch.bool), torch.ones(bins, dtype=torch.bool)

    def _positions(self, table: Tensor, source: Pair, target: Pair) -> Tensor:
        return resize_positions(table, self.encoder.special, source, target)

    def _hide(self, patches: Tensor, hidden: Tensor | None) -> Tensor:
        if hidden is None:
            return patches
        return torch.where(hidden.unsqueeze(-1), self.mask_embed.to(patches.dtype), patches)

    def _tokens(self, log_mel: Tensor, hidden: Tensor | None, grid: Grid) -> tuple[Tensor, Pair]:
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
            # No table was trained for this grid: a probe's patches lie between the model's own.
            step = (self.patch[0] / self.stride[0], self.patch[1] / self.stride[1])
            positions = sample_positions(*own, special=self.encoder.special, step=step)
        patches = self._hide(self.encoder.embed(log_mel, stride), hidden)
        return self.encoder.encode(patches, positions)[:, self.encoder.special :], shape


def _prediction_head(width: int, cells: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, cells))


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
    facts = state.get(prefix + "geometry")
    if facts is None or not isinstance(module, SSAST):
        return
    refused = other_geometry(module.geometry, facts)
    if refused:
        error_msgs.append(refused)
    elif not module.pretraining:
        module.set_pretraining_grid(*facts[4:6].tolist())
