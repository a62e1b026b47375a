"""Base class of encoders: log-mel patches in, tokens out, and optional abilities."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Self

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from peas.errors import ConfigError, NoReconstruction
from peas.models.local_attention import LocalBlock
from peas.models.patches import Pair, gather_tokens, visible_indices
from peas.models.reconstructor import Reconstructor
from peas.models.vit import PostNormBlock
from peas.parts import Part

Need = Literal["decoder", "pixels", "contrast", "labels", "clips"]
"""What an objective needs: predictions at masked patches; a pixel head that stays for PEAS; a
head of the encoder's own for InfoNCE, where it has one; classes of the data; clips as they are,
neither mixed nor moved."""

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")
_BLOCK_MODULE = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)$")
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
    """`[B, N, D']`, input of the prediction heads; None = it predicts nothing."""


class Encoder(Part, Reconstructor, ABC):
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
        decoder_width: Width D' of the prediction heads' input.
        frames: Frames T of the input.
        mels: Mel bins F of the input.
        num_classes: Number of classes C; 0 without a classifier.
        pooling: `mean` of the patch tokens, or `cls`, of the special ones.
        fc_norm: LayerNorm before the classifier; identity without classes.
        head: The classifier; identity without classes.
        contrastive_head: Tokens to patches for InfoNCE, where official files hold one.
        predicts_masked_only: Whether heads take only masked patches, or all.
        normalises_pixels: Whether its pixel head may predict patches normalised by their own mean
            and deviation.
    """

    fixed: ClassVar[tuple[str, ...]] = ()
    """Settings that a checkpoint's weights depend on."""
    predicts_masked_only: ClassVar[bool] = False
    normalises_pixels: ClassVar[bool] = True
    width: int
    pooling: str = "mean"
    frames: int = 0
    num_classes: int = 0
    norm_pix: bool = False
    contrastive_head: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.contrastive_head = None

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
            needs: What the objectives of a pretraining need; None = no pretraining.
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

    # Not properties: a subclass may have settings of these names, and sets what it knows.
    @cached_property
    def depth(self) -> int:
        """Number of blocks, by the names of the weights."""
        names = (name for name, _ in self.named_parameters() if not name.startswith("decoder."))
        matches = (_BLOCK.search(name) for name in names)
        return 1 + max((int(match[1]) for match in matches if match), default=-1)

    def layer_of(self, name: str) -> int:
        """Depth of a parameter: 0 the embeddings, i + 1 block i, `depth` + 1 all behind."""
        block = None if name.startswith("decoder.") else _BLOCK.search(name)
        if block:
            return int(block[1]) + 1
        return 0 if _EMBEDDING.search(name) else self.depth + 1

    @cached_property
    def decoder_width(self) -> int:
        """Width D' of the prediction heads' input."""
        return self.width

    # --- tokens -----------------------------------------------------------------------------

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

    def intermediates(self, log_mel: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Tokens `[B, special + N, D]` at several depths, in one pass.

        Args:
            log_mel: `[B, T, F]`.
            layers: 0 = the embeddings, which the first block takes; i = the output of block i;
                `depth` = the encoder's output, after its last norm. Negative numbers count from
                the end.

        Raises:
            ConfigError: There is no such layer, or a block gives something else than tokens.
        """
        numbers = [self.layer_number(layer) for layer in layers]
        blocks = {
            int(match[1]): module
            for name, module in self.named_modules()
            if (match := _BLOCK_MODULE.search(name)) and not name.startswith("decoder.")
        }
        kept: dict[int, Tensor] = {}

        def keep(number: int, output: object) -> None:
            tokens = output[0] if isinstance(output, tuple) else output
            if not isinstance(tokens, Tensor) or tokens.shape[-1] != self.width or tokens.ndim != 3:
                raise ConfigError(
                    f"layer {number} of {type(self).__name__} gives no tokens [B, N, {self.width}]:"
                    " let the encoder override `intermediates`"
                )
            kept[number] = tokens

        hooks = [
            blocks[0].register_forward_pre_hook(lambda _, inputs: keep(0, inputs[0]))
            if number == 0
            else blocks[number - 1].register_forward_hook(
                lambda _, __, output, number=number: keep(number, output)
            )
            for number in set(numbers) - {self.depth}
        ]
        try:
            kept[self.depth] = self.tokens(log_mel)
        finally:
            for hook in hooks:
                hook.remove()
        return [kept[number] for number in numbers]

    def layer_number(self, layer: int) -> int:
        """Number of a layer, which may be counted from the end.

        Raises:
            ConfigError: There is no such layer.
        """
        number = layer + self.depth + 1 if layer < 0 else layer
        if not 0 <= number <= self.depth:
            raise ConfigError(
                f"layer {layer}: {type(self).__name__} has the layers 0 (its embeddings) to "
                f"{self.depth} (its output)"
            )
        return number

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
        from peas.models.weights.importer import load_own

        return load_own(self, state, where)

    def import_vit(self, state: dict[str, Tensor], report: Any) -> dict[str, Tensor]:
        """Weights of an ImageNet vision transformer with timm's keys, as this model's `encoder`.

        Args:
            state: With a kernel of one colour, (mel bins, frames).
            report: An `ImportReport` to fill.

        Raises:
            ConfigError: This encoder takes none.
        """
        raise ConfigError(
            f"`model.init_args.pretrained`: {type(self).__name__} takes no `timm:` weights: give "
            "a checkpoint of its own, or null"
        )


def drop(tokens: Tensor, masked: Tensor | None) -> Tensor:
    """Leaves masked patches out: `[B, N, D]` and `[B, N]` bool to `[B, V, D]`."""
    return tokens if masked is None else gather_tokens(tokens, visible_indices(masked))


def compile_blocks(model: nn.Module) -> None:
    """Compile every transformer block of a model in place, so that no key changes.

    The blocks share their code and so one graph; compiling the model as one would take as many
    times longer, and be interrupted by graph breaks between them.

    Args:
        model: The model.
    """
    for part in model.modules():
        if isinstance(part, Block | LocalBlock | PostNormBlock):
            part.compile()
