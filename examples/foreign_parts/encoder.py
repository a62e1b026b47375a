"""Any vision transformer of timm as an encoder of log-mels."""

from collections.abc import Collection

import timm
import torch
from torch import Tensor

from peas.models import Encoder, Need, drop


class TimmViT(Encoder):
    """A vision transformer of timm, on patches that do not overlap.

    Args:
        name: Of a timm model whose class is `VisionTransformer`.
        width: Width of its tokens; null is the model's own, as below.
        depth: Number of its blocks.
        heads: Number of its attention heads.
        patch: Patch shape (mel bins, frames).
        pooling: `mean` of the patch tokens, or `cls`.
    """

    fixed = ("name", "width", "depth", "heads", "patch", "pooling")

    def __init__(
        self,
        name: str = "vit_tiny_patch16_224",
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        patch: tuple[int, int] = (16, 16),
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.name, self.patch, self.pooling = name, (patch[0], patch[1]), pooling
        shape = {"embed_dim": width, "depth": depth, "num_heads": heads}
        self.shape = {key: value for key, value in shape.items() if value is not None}

    def make(self, needs: Collection[Need] | None) -> None:
        """Makes the transformer. timm's image is the log-mel [T, F], so tokens are time-major."""
        self.vit = timm.create_model(
            self.name,
            img_size=(self.frames, self.mels),
            patch_size=self.patch[::-1],
            in_chans=1,
            num_classes=0,
            dynamic_img_size=True,
            **self.shape,
        )
        self.width, self.special = self.vit.embed_dim, self.vit.num_prefix_tokens
        self.make_classifier()

    def tokens(self, log_mel: Tensor, masked: Tensor | None = None) -> Tensor:
        """Visible tokens; for another length timm resamples the positions."""
        embedded = self.vit._pos_embed(self.vit.patch_embed(log_mel.unsqueeze(1)))
        first, patches = embedded[:, : self.special], embedded[:, self.special :]
        tokens = self.vit.norm_pre(torch.cat((first, drop(patches, masked)), dim=1))
        return self.vit.norm(self.vit.blocks(tokens))
