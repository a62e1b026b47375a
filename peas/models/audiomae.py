"""AudioMAE: a transformer that encodes visible patches and reconstructs masked ones."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peas.errors import ConfigError
from peas.models.audiomae_layers import (
    Decoder,
    DecoderKind,
    DecoderShape,
    MaskedEncoder,
    Raster,
    official_raster,
)
from peas.models.encoder import Encoder, Need, Pretext
from peas.models.patches import other_geometry, visible_indices

_KINDS: tuple[DecoderKind, DecoderKind] = ("local", "global")
PIXEL_EPS = 1e-6
"""Added to the variance of a patch before it is normalised."""


class AudioMAE(Encoder):
    """AudioMAE (Huang et al., 2022), for pretraining, classification and PEAS.

    The decoder stays, frozen, when a pretrained model becomes a classifier, because PEAS (its
    equations 1 and 2) needs `reconstruct`; the official fine-tuning code discards it. It was
    trained on masked patches only, so its predictions at visible ones are not reliable.

    Attributes:
        encoder: `MaskedEncoder`.
        decoder: `local` attention in windows, or `global`; once made the `Decoder`, or None.
        fc_norm: LayerNorm of the mean token, the classifier's replacement of the encoder's
            final norm; identity without classes.
        head: The classifier; identity without classes.
        reconstructs: Scalar bool; False when the decoder predicts no pixels.
        geometry: `[9]` int64: frames, mels, stride (frequency, time), normalised pixels (0 or 1),
            decoder (0 none, 1 local, 2 global), heads, window, first shift. With the weights'
            shapes it makes a checkpoint self-describing.
    """

    special = 1
    fixed = (
        "size",
        "patch",
        "stride",
        "positions",
        "pooling",
        "decoder",
        "decoder_width",
        "decoder_depth",
        "decoder_heads",
        "decoder_window",
        "decoder_first_shift",
    )
    geometry: Tensor

    def __init__(
        self,
        size: Literal["mini", "tiny", "small", "base", "large"] = "base",
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] | None = None,
        positions: Raster | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        drop_path: float = 0.0,
        decoder: DecoderKind = "local",
        decoder_width: int = 512,
        decoder_depth: int = 16,
        decoder_heads: int = 16,
        decoder_window: int = 4,
        decoder_first_shift: Literal[0, 1] = 0,
    ) -> None:
        """Note the settings. Those of the decoder are for pretraining: later a file brings its own.

        Args:
            size: `mini` (128 wide, 4 blocks), `tiny` (192, 12), `small` (384, 12), `base` (768, 12)
                or `large` (1024, 24).
            patch: Patch shape (mel bins, frames).
            stride: Step between patches; null = the patch. AudioMAE's overlapping variant has
                (10, 10) and windows of 6.
            positions: Raster of the fixed tables: `stored`, that of AudioMAE's released files, or
                `geometric`. Null is the official code's: `stored`, and `geometric` where patches
                overlap. A file of weights brings its own. See `peas.models.audiomae_layers`.
            pooling: `mean` of the patch tokens, or the class token (`cls`).
            drop_path: Rate of stochastic depth of the last block; it rises linearly from 0.
                AudioMAE has 0.1 in fine-tuning.
            decoder: `local` attention in windows, or `global`.
            decoder_width: Width of the decoder's tokens.
            decoder_depth: Blocks of the decoder: officially 16 local ones or 8 global ones. The
                single block of SupMAM-CLAP's paper is stated for MAM-CLAP and SupMAM-CLAP only.
            decoder_heads: Attention heads of the decoder.
            decoder_window: Side of a local decoder's attention window, in patches.
            decoder_first_shift: 0: the first local block is not shifted; 1: it is, as "a single
                transformer block with shifted local attention" may be read.
        """
        super().__init__()
        self.size, self.patch = size, (patch[0], patch[1])
        self.settle(stride=self.patch if stride is None else (stride[0], stride[1]))
        self.positions: Raster = positions or official_raster(self.patch, self.stride)
        self.settle(positions=self.positions)
        self.pooling, self.drop_path = pooling, drop_path
        self.shape = DecoderShape(
            decoder,
            decoder_width,
            decoder_depth,
            decoder_heads,
            decoder_window,
            decoder_first_shift,
        )
        self.decoder: Decoder | None = None

    def make(self, needs: Collection[Need] | None) -> None:
        """Makes the modules, initialised as in the official code."""
        self.encoder = MaskedEncoder(
            self.size,
            frames=self.frames,
            mels=self.mels,
            patch=self.patch,
            stride=self.stride,
            positions=self.positions,
            drop_path=self.drop_path,
        )
        self.width = self.encoder.width
        self.make_classifier()
        if self.num_classes:
            # Fine-tuning sends no gradient through it, and DistributedDataParallel stops on
            # parameters that wait for one in vain.
            self.encoder.norm.requires_grad_(False)
        self.register_buffer("geometry", torch.zeros(9, dtype=torch.int64))
        needed = needs or ()
        self.attach_decoder(
            self.shape if "decoder" in needed else None,
            pixels="pixels" in needed,
            norm_pix=self.norm_pix,
        )
        self.register_load_state_dict_pre_hook(_adopt_decoder)  # type: ignore[no-untyped-call]

    def make_classifier(self) -> None:
        """Initialised as in the official code."""
        super().make_classifier()
        if isinstance(self.head, nn.Linear):
            self.fc_norm = nn.LayerNorm(self.width, eps=1e-6)
            nn.init.trunc_normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)

    @property
    def decoder_width(self) -> int:
        """Width of the decoder's tokens."""
        return self.shape.width if self.decoder is None else self.decoder.shape.width

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
                bins=math.prod(self.patch),
                positions=encoder.positions,
                pixels=pixels,
            ).to(device)
            self.decoder.requires_grad_(self.num_classes == 0)
        self.norm_pix = norm_pix
        kind, *rest = (0, 0, 0, 0) if shape is None else _numbers(shape)
        geometry = (encoder.frames, encoder.mels, *self.stride, int(norm_pix), kind, *rest)
        self.geometry = torch.tensor(geometry, device=device)
        self.reconstructs = torch.tensor(shape is not None and pixels, device=device)

    # --- classification ---------------------------------------------------------------------

    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Class token and visible patches after the final norm, `[B, 1 + V, D]`; T may differ."""
        encoded: Tensor = self.encoder.norm(self._encoded(log_mel, masked))
        return encoded

    def forward(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """As in `Encoder`; a classifier has `fc_norm` instead of the encoder's norm.

        Raises:
            ConfigError: T and F are not what the model was built for.
        """
        if log_mel.shape[1:] != (self.frames, self.mels):
            raise ConfigError(
                f"the model was built for spectrograms [B, {self.frames}, {self.mels}] (frames, "
                f"mel bins) and got {list(log_mel.shape)}; set the model's frames and mels to the "
                "front end's"
            )
        tokens = self._encoded(log_mel, masked)
        if not self.num_classes:
            tokens = self.encoder.norm(tokens)
        logits: Tensor = self.head(self.fc_norm(self.pool(tokens)))
        return logits

    def _encoded(self, log_mel: Tensor, masked: Tensor | None) -> Tensor:
        visible = None if masked is None else visible_indices(masked)
        tokens: Tensor = self.encoder(self.encoder.patches(log_mel), visible)
        return tokens

    # --- pretraining ------------------------------------------------------------------------

    def patches(self, log_mel: Tensor) -> Tensor:
        """Cuts `[B, T, F]` into `[B, N, P]`, time-major."""
        return self.encoder.patches(log_mel)

    def pretext(self, log_mel: Tensor, masked: Tensor, visible: Tensor) -> Pretext:
        """Encodes the visible patches, and decodes where there is a decoder."""
        patches = self.encoder.patches(log_mel)
        tokens = self.encoder.norm(self.encoder(patches, visible))
        decoded = None
        if self.decoder is not None:
            decoded = self.decoder(tokens, visible, patches.shape[1])
        return Pretext(tokens, tokens[:, 1:], decoded)

    def to_decoder(self, tokens: Tensor) -> Tensor:
        """Through the decoder's embedding."""
        assert self.decoder is not None
        embedded: Tensor = self.decoder.embed(tokens)
        return embedded

    def targets(self, patches: Tensor) -> Tensor:
        """What the decoder is to predict: the patches `[B, N, P]`, normalised if `norm_pix`."""
        return normalised(patches)[0] if self.norm_pix else patches

    def pixels(self, decoded: Tensor) -> Tensor:
        """Patches of the decoder's pixel head."""
        assert self.decoder is not None
        predicted: Tensor = self.decoder.pred(decoded)
        return predicted

    # --- reconstruction ---------------------------------------------------------------------

    @property
    def can_reconstruct(self) -> bool:
        """Whether there is a probe, or a decoder with a pixel head."""
        own = self.decoder is not None and bool(self.reconstructs)
        return self.pixel_probe is not None or own

    def require_trainable_pixels(self) -> None:
        """Lets an auxiliary loss train the decoder."""
        self.require_reconstruction()
        assert self.decoder is not None
        self.decoder.requires_grad_(True)

    def adopt_heads(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Makes the state's decoder."""
        self.attach_decoder(
            decoder_of(state, prefix),
            pixels=prefix + "decoder.pred.weight" in state,
            norm_pix=bool(state[prefix + "geometry"][4]),
        )

    def predict(self, log_mel: Tensor, masked: Tensor | None) -> Tensor:
        """The decoder's patches; normalised ones by the input patch's own mean and deviation."""
        if self.pixel_probe is not None:
            return super().predict(log_mel, masked)
        assert self.decoder is not None
        patches = self.encoder.patches(log_mel)
        visible = None if masked is None else visible_indices(masked)
        tokens = self.encoder.norm(self.encoder(patches, visible))
        predicted: Tensor = self.decoder.pred(self.decoder(tokens, visible, patches.shape[1]))
        if self.norm_pix:
            _, mean, deviation = normalised(patches)
            predicted = predicted * deviation + mean
        return predicted

    # --- weights of others ------------------------------------------------------------------

    def import_weights(self, state: Mapping[str, Any], where: str) -> Any:
        """Fills the model from an official AudioMAE file or a checkpoint of ours."""
        from peas.models.weights import AUDIOMAE

        return AUDIOMAE.load(self, state, where)

    def import_vit(self, state: dict[str, Tensor], report: Any) -> dict[str, Tensor]:
        """The fixed positions stay; the kernel becomes (frames, mel bins)."""
        from peas.models.weights.imagenet import tokens_of_audiomae

        return tokens_of_audiomae(state, report)


def normalised(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches by their own mean and deviation (unbiased variance + 1e-6), as AudioMAE's loss.

    Args:
        patches: `[B, N, P]`.

    Returns:
        Normalised patches, mean and deviation `[B, N, 1]`, float32.
    """
    bins = patches.float()
    variance, mean = torch.var_mean(bins, dim=-1, keepdim=True)
    deviation = (variance + PIXEL_EPS).sqrt()
    return (bins - mean) / deviation, mean, deviation


def _numbers(shape: DecoderShape) -> tuple[int, int, int, int]:
    return 1 + _KINDS.index(shape.kind), shape.heads, shape.window, shape.first_shift


def decoder_of(state: Mapping[str, Tensor], prefix: str = "") -> DecoderShape | None:
    """Shape of the decoder whose weights a state of `AudioMAE` holds.

    Args:
        state: From `AudioMAE.state_dict()`.
        prefix: Before the keys.
    """
    geometry = state[prefix + "geometry"].tolist()
    if not geometry[5]:
        return None
    root = prefix + "decoder.blocks."
    depth = 1 + max(int(k[len(root) :].split(".")[0]) for k in state if k.startswith(root))
    width = state[prefix + "decoder.embed.weight"].shape[0]
    return DecoderShape(_KINDS[geometry[5] - 1], width, depth, *geometry[6:9])


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
    geometry = state.get(prefix + "geometry")
    if geometry is None or not isinstance(module, AudioMAE):
        return
    refused = other_geometry(module.geometry, geometry)
    if refused:
        error_msgs.append(refused)
        return
    shape, pixels = decoder_of(state, prefix), prefix + "decoder.pred.weight" in state
    own = None if module.decoder is None else module.decoder.shape
    if (own, bool(module.reconstructs)) != (shape, pixels):
        module.attach_decoder(shape, pixels=pixels, norm_pix=bool(geometry[4]))
    module.norm_pix = bool(geometry[4])
