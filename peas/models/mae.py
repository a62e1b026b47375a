"""AudioMAE: a spectrogram transformer that encodes visible patches and draws the hidden ones."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from peas.errors import ConfigError, NoReconstruction
from peas.models.grid import Pair, covered, fold_average, grid_shape, pad_to_patch, unpatchify
from peas.models.mae_decoder import Decoder, DecoderKind, DecoderShape
from peas.models.mae_encoder import MaskedEncoder
from peas.models.masked import (
    Grid,
    MaskedModel,
    check_grid,
    other_geometry,
    visible_places,
)
from peas.models.positions import Raster

_KINDS: tuple[DecoderKind, DecoderKind] = ("local", "global")
PIXEL_EPS = 1e-6
"""Added to the variance of a patch before it is normalised."""


class MaskedAutoencoder(MaskedModel):
    """AudioMAE (Huang et al., 2022), for pretraining, classification and PEAS.

    The decoder stays when a pretrained model becomes a classifier, frozen, because PEAS (its
    equations 1 and 2) asks for `reconstruct`; the official fine-tuning code throws it away.

    Attributes:
        encoder: `MaskedEncoder`.
        decoder: `Decoder`, or None.
        fc_norm: LayerNorm of the mean token, which the classifier has in the place of the
            encoder's final norm; identity without classes.
        head: The classifier; identity without classes.
        reconstructs: Scalar bool; False when the decoder predicts no pixels.
        geometry: `[9]` int64: frames, mels, stride (frequency, time), normalised pixels (0 or 1),
            decoder (0 none, 1 local, 2 global), heads, window, first shift. With the weights'
            shapes it makes a checkpoint self-describing.
    """

    time_major = True
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
        positions: Raster | None = None,
        decoder: DecoderShape | None = None,
        pixels: bool = True,
        norm_pix: bool = True,
        pooling: Literal["mean", "cls"] = "mean",
        drop_path: float = 0.0,
    ) -> None:
        """Build the model with fresh weights, begun as the official code begins them.

        Args:
            size: Key of `peas.models.encoder.SIZES`.
            num_classes: Number of classes C; 0 for pretraining.
            frames: Number of frames T of the input.
            mels: Number of mel bins F of the input.
            patch: Height and width of a patch, (mel bins, frames).
            stride: Step between two patches; by default the patch.
            positions: Raster of the fixed tables; by default the official code's for this stride.
            decoder: Shape of the decoder; None = none. A loaded checkpoint brings its own.
            pixels: Whether the decoder predicts patches.
            norm_pix: Whether those patches are normalised by their own mean and deviation.
            pooling: `mean` of the patch tokens, or the class token (`cls`).
            drop_path: Rate of stochastic depth of the last block; it rises linearly from 0.

        Raises:
            ConfigError: If a size, pooling or shape is impossible.
        """
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ConfigError(f"unknown pooling {pooling!r}; choose 'mean' or 'cls'")
        self.encoder = MaskedEncoder(
            size,
            frames=frames,
            mels=mels,
            patch=patch,
            stride=stride,
            positions=positions,
            drop_path=drop_path,
        )
        self.num_classes = num_classes
        self.pooling = pooling
        self.patch, self.stride = self.encoder.patch, self.encoder.stride
        self.fc_norm: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.fc_norm = nn.LayerNorm(self.width, eps=1e-6)
            self.head = nn.Linear(self.width, num_classes)
            nn.init.trunc_normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)
            # Fine-tuning sends no gradient through it, and DistributedDataParallel stops on
            # parameters that wait for one in vain.
            self.encoder.norm.requires_grad_(False)
        self.decoder: Decoder | None = None
        self.register_buffer("reconstructs", torch.tensor(False))
        self.register_buffer("geometry", torch.zeros(9, dtype=torch.int64))
        self.attach_decoder(decoder, pixels=pixels, norm_pix=norm_pix)
        self.register_load_state_dict_pre_hook(_adopt_decoder)  # type: ignore[no-untyped-call]

    def attach_decoder(self, shape: DecoderShape | None, *, pixels: bool, norm_pix: bool) -> None:
        """Give the model a fresh decoder, frozen when the model is a classifier.

        Args:
            shape: Of the decoder; None takes it away.
            pixels: Whether it predicts patches.
            norm_pix: Whether those are normalised.
        """
        encoder = self.encoder
        device = encoder.cls_token.device
        self.decoder = None
        if shape is not None:
            self.decoder = Decoder(
                shape,
                encoder_width=encoder.width,
                grid=encoder.grid,
                cells=math.prod(self.patch),
                positions=encoder.positions,
                pixels=pixels,
            ).to(device)
            self.decoder.requires_grad_(self.num_classes == 0)
        self.norm_pix = norm_pix
        kind, *rest = (0, 0, 0, 0) if shape is None else _numbers(shape)
        facts = (encoder.frames, encoder.mels, *self.stride, int(norm_pix), kind, *rest)
        self.geometry = torch.tensor(facts, device=device)
        self.reconstructs = torch.tensor(shape is not None and pixels, device=device)

    @property
    def width(self) -> int:
        """Width D of a token."""
        return self.encoder.width

    @property
    def grid(self) -> Pair:
        """Patches along (frequency, time) of the model's own input."""
        return self.encoder.grid

    # --- classification ---------------------------------------------------------------------

    def encode(self, log_mel: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Class token and visible patches after the final norm, `[B, 1 + V, D]`; T may differ.

        Args:
            log_mel: `[B, T, F]` normalised.
            hidden: `[B, N]` bool, time-major; these patches do not reach the encoder.
        """
        visible = None if hidden is None else visible_places(hidden)
        tokens = self.encoder(self.encoder.patches(log_mel), visible)
        encoded: Tensor = self.encoder.norm(tokens)
        return encoded

    def forward(self, log_mel: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits `[B, C]` of `[B, T, F]`; embeddings `[B, D]` when there are no classes.

        Args:
            log_mel: `[B, T, F]` normalised.
            hidden: `[B, N]` bool, time-major; these patches are dropped.

        Raises:
            ConfigError: T and F are not what the model was built for.
        """
        if log_mel.shape[1:] != (self.encoder.frames, self.encoder.mels):
            raise ConfigError(
                f"the model was built for spectrograms [B, {self.encoder.frames}, "
                f"{self.encoder.mels}] (frames, mel bins) and got {list(log_mel.shape)}; set the "
                "model's frames and mels to the front end's"
            )
        visible = None if hidden is None else visible_places(hidden)
        tokens = self.encoder(self.encoder.patches(log_mel), visible)
        if not self.num_classes:
            tokens = self.encoder.norm(tokens)
        pooled = tokens[:, 0] if self.pooling == "cls" else tokens[:, 1:].mean(dim=1)
        logits: Tensor = self.head(self.fc_norm(pooled))
        return logits

    def embedding(self, log_mel: Tensor) -> Tensor:
        """Mean of the patch tokens after the final norm, `[B, D]`; any number of frames."""
        return self.encode(log_mel)[:, 1:].mean(dim=1)

    # --- reconstruction ---------------------------------------------------------------------

    def targets(self, patches: Tensor) -> Tensor:
        """What the decoder is to predict: the patches `[B, N, P]`, normalised if `norm_pix`."""
        return normalised(patches)[0] if self.norm_pix else patches

    def reconstruct(
        self, log_mel: Tensor, hidden: Tensor | None = None, *, grid: Grid = "nonoverlap"
    ) -> Tensor:
        """Draw the spectrogram from its tokens: G(E(x)) of PEAS's equations 1 and 2.

        Predictions of normalised patches are scaled back with the input patch's own mean and
        deviation. As in the literal reading of the equations, nothing is hidden unless `hidden`
        says so; AudioMAE's decoder was trained on hidden patches alone, so its drawing of visible
        ones is a guess. A length that is no multiple of the patch is padded and the result cut.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's.
            hidden: `[B, N]` bool in frequency-major order, equally many of each clip.
            grid: Both are the model's own patches. Where they overlap, cells hold the mean.

        Returns:
            `[B, T, F]` in the units of `log_mel`.

        Raises:
            NoReconstruction: The model has no pixel head.
            ConfigError: The grid is unknown, or the clip shorter than a patch.
        """
        self.require_reconstruction()
        self.require_head_for(hidden)
        check_grid(grid)
        _, frames, mels = log_mel.shape
        whole = self.stride == self.patch
        padded = self._whole(log_mel)
        rows, columns = self.encoder.grid_of(padded.shape[1])
        patches = self.encoder.patches(padded)
        visible = None
        if hidden is not None:
            visible = visible_places(hidden.view(-1, rows, columns).transpose(1, 2).flatten(1))
        tokens = self.encoder.norm(self.encoder(patches, visible))
        if self.pixel_probe is not None:
            drawn = self.pixel_probe(tokens[:, 1:])
        else:
            assert self.decoder is not None
            drawn = self.decoder.pred(self.decoder(tokens, visible, rows * columns))
            if self.norm_pix:
                _, mean, deviation = normalised(patches)
                drawn = drawn * deviation + mean
        high, wide = self.patch
        cells = drawn.view(-1, columns, rows, wide, high).transpose(1, 2).transpose(3, 4)
        cells = cells.flatten(3).flatten(1, 2)
        if whole:
            return unpatchify(cells, self.patch, (rows, columns))[:, :frames, :mels]
        folded = fold_average(cells, self.patch, self.stride, frames, mels)
        time, freq = (line.to(log_mel.device) for line in self.coverage(frames, grid, mels))
        return torch.where(time[:, None] & freq, folded, log_mel)

    def patch_tokens(self, log_mel: Tensor, grid: Grid = "nonoverlap") -> tuple[Tensor, Tensor]:
        """Tokens `[B, N, D]` after the final norm and patches `[B, N, P]`, time-major.

        Args:
            log_mel: `[B, T, F]` normalised; T may differ from the model's.
            grid: Both are the model's own patches.
        """
        check_grid(grid)
        patches = self.encoder.patches(self._whole(log_mel))
        return self.encoder.norm(self.encoder(patches))[:, 1:], patches

    def _whole(self, log_mel: Tensor) -> Tensor:
        """The input, padded to whole patches where they do not overlap."""
        return pad_to_patch(log_mel, self.patch) if self.stride == self.patch else log_mel

    def require_reconstruction(self) -> None:
        """Raises NoReconstruction when there is neither a trained pixel head nor a probe."""
        if self.pixel_probe is None and (self.decoder is None or not self.reconstructs):
            raise NoReconstruction(
                "this model has no pixel head, so it cannot reconstruct a spectrogram (MAM-CLAP, "
                "SupMAM-CLAP and official fine-tuned files have none): start from a checkpoint "
                "pretrained with reconstruction, train a linear pixel head on the frozen encoder "
                "(`model.init_args.reconstruction: probe`), or choose a strategy that needs none "
                "(`SpecAugment`, `RandomMasking`, or `PEAS` with `score: energy`)"
            )

    def token_grid(self, frames: int, grid: Grid = "nonoverlap") -> Pair:
        """Patches along (frequency, time) that `reconstruct` makes of T frames."""
        check_grid(grid)
        if self.stride != self.patch:
            return self.encoder.grid_of(frames)
        whole = -(-frames // self.patch[1]) * self.patch[1]
        tall = -(-self.encoder.mels // self.patch[0]) * self.patch[0]
        return grid_shape(whole, tall, self.patch, self.patch)

    def coverage(
        self, frames: int, grid: Grid = "nonoverlap", mels: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames `[T]` and mel bins `[F]`, boolean, on the CPU, that the patches cover."""
        check_grid(grid)
        bins = self.encoder.mels if mels is None else mels
        if self.stride != self.patch:
            return covered(frames, bins, self.patch, self.stride)
        return torch.ones(frames, dtype=torch.bool), torch.ones(bins, dtype=torch.bool)


def normalised(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches by their own mean and deviation (unbiased variance + 1e-6), as AudioMAE's loss.

    Args:
        patches: `[B, N, P]`.

    Returns:
        Normalised patches, mean and deviation `[B, N, 1]`, float32.
    """
    cells = patches.float()
    variance, mean = torch.var_mean(cells, dim=-1, keepdim=True)
    deviation = (variance + PIXEL_EPS).sqrt()
    return (cells - mean) / deviation, mean, deviation


def _numbers(shape: DecoderShape) -> tuple[int, int, int, int]:
    return 1 + _KINDS.index(shape.kind), shape.heads, shape.window, shape.first_shift


def decoder_of(state: dict[str, Tensor], prefix: str = "") -> DecoderShape | None:
    """Shape of the decoder whose weights a state of `MaskedAutoencoder` holds.

    Args:
        state: From `MaskedAutoencoder.state_dict()`.
        prefix: Before the keys.
    """
    facts = state[prefix + "geometry"].tolist()
    if not facts[5]:
        return None
    root = prefix + "decoder.blocks."
    depth = 1 + max(int(k[len(root) :].split(".")[0]) for k in state if k.startswith(root))
    width = state[prefix + "decoder.embed.weight"].shape[0]
    return DecoderShape(_KINDS[facts[5] - 1], width, depth, *facts[6:9])


def _adopt_decoder(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    local_metadata: dict[str, object],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Give the model the decoder that the state has, before the weights are copied."""
    facts = state.get(prefix + "geometry")
    if facts is None or not isinstance(module, MaskedAutoencoder):
        return
    refused = other_geometry(module.geometry, facts)
    if refused:
        error_msgs.append(refused)
        return
    shape, pixels = decoder_of(state, prefix), prefix + "decoder.pred.weight" in state
    own = None if module.decoder is None else module.decoder.shape
    if (own, bool(module.reconstructs)) != (shape, pixels):
        module.attach_decoder(shape, pixels=pixels, norm_pix=bool(facts[4]))
    module.norm_pix = bool(facts[4])
