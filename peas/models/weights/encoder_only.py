"""Files of encoders whose weights do not depend on the input: no decoder, no table of positions."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peas.errors import CheckpointError
from peas.models.patches import Pair
from peas.models.vit import SIZES, Size
from peas.models.weights.importer import RUN_PREFIX, Description, Family, Import, State, inner_of


class EncoderOnlyFamily(Family):
    """A family with an encoder and perhaps a classifier.

    Attributes:
        marks: An official key, and one of ours, that every file has.
        kernel: Official name of the patch embedding's kernel, (frames, mel bins).
        block: Official prefix of the blocks, before their numbers.
    """

    marks: tuple[str, str]
    kernel: str
    block: str
    special = ()
    root = ""
    bookkeeping = ("reconstructs",)
    pretraining_only = ()
    pixel_head = ""

    @abstractmethod
    def expected(self, job: Import, size: Size) -> Mapping[str, tuple[Any, Any]]:
        """Settings that a file may state, with the official default and the model's value."""

    def settings(self, stated: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's own settings, of what a file states."""
        return stated

    def renamed(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The file's tensors, where it has other official names than this family's."""
        return dict(state)

    def is_official(self, state: Mapping[str, Tensor]) -> bool:
        """By the official mark."""
        return self.marks[0] in state

    def unwrap(self, state: Mapping[str, Any], where: str) -> tuple[State, list[str]]:
        """As in `Family`."""
        inner = self.renamed(inner_of(state))
        prefix = RUN_PREFIX if any(key.startswith(RUN_PREFIX) for key in inner) else ""
        own = {key.removeprefix(prefix): v for key, v in inner.items() if key.startswith(prefix)}
        if not any(mark in own for mark in self.marks):
            names = [str(key) for key in inner][:4]
            raise CheckpointError(
                f"{where}: not an {self.name} checkpoint. It holds {', '.join(names) or 'nothing'}"
                f", …; expected are {self.marks[0]} (official) or {self.marks[1]} (peas)"
            )
        for key, value in own.items():
            if not isinstance(value, Tensor):
                raise CheckpointError(
                    f"{where}: {key} is a {type(value).__name__}, not a tensor; get the file again"
                )
        return own, [key for key in inner if not key.startswith(prefix)]

    def shape(self, state: Mapping[str, Tensor], where: str, *, official: bool) -> dict[str, Any]:
        """The patch, and the step, which is equal to it."""
        key = self.kernel if official else self.ours(self.kernel)
        kernel = state.get(key)
        if kernel is None or kernel.ndim != 4 or kernel.shape[1] != 1:
            shape = "missing" if kernel is None else f"of shape {list(kernel.shape)}"
            raise CheckpointError(
                f"{where}: {key} is {shape}, and should be [D, 1, frames, mel bins]; give a file "
                f"of {self.name}, as it was saved"
            )
        patch: Pair = (kernel.shape[3], kernel.shape[2])
        return {"patch": patch, "stride": patch}

    def _describe(self, state: Mapping[str, Tensor], where: str) -> Description:
        official = self.is_official(state)
        root = self.block if official else "encoder.blocks."
        numbers = {key[len(root) :].split(".")[0] for key in state if key.startswith(root)}
        norm = self.ours(f"{self.block}0.") + "norm1.weight"
        width = state.get(self.file_key(norm, official=official), torch.empty(0)).numel()
        found = (width, len(numbers))
        names = [name for name, size in SIZES.items() if (size.width, size.depth) == found]
        if not names or numbers != {str(number) for number in range(len(numbers))}:
            known = ", ".join(f"{n} {size.width} and {size.depth}" for n, size in SIZES.items())
            raise CheckpointError(
                f"{where}: its blocks {root}* are {len(numbers)} of width {width}, and {self.name} "
                f"has one of the sizes {known}; give a checkpoint of one of these, whole"
            )
        head = state.get(self.file_key("head.weight", official=official))
        return Description(
            layout="official" if official else "peas",
            kind="pretrained" if head is None else "fine-tuned",
            size=names[0],
            num_classes=0 if head is None else head.shape[0],
            **self.shape(state, where, official=official),
        )

    def ours(self, key: str) -> str:
        """Our name of an official key."""
        for ours, official in self.prefixes.items():
            if key.startswith(official):
                return ours + key.removeprefix(official)
        return key

    def check(self, job: Import) -> None:
        """Patch, and what the file states of its model."""
        where = job.report.path
        if job.info.patch != job.model.patch:
            raise CheckpointError(
                f"{where}: has patches of {job.info.patch} (mel bins, frames) and the model to "
                f"fill {job.model.patch}; set patch to {list(job.info.patch)}"
            )
        if job.info.layout != "official":
            return
        stated = self.settings(job.settings)
        if not stated:
            job.report.notes.append("the file states no settings; those of the model are taken")
            return
        for key, (default, wanted) in self.expected(job, SIZES[job.info.size]).items():
            value = stated.get(key, default)
            if value != wanted:
                raise CheckpointError(
                    f"{where}: its settings say {key}: {value!r}, and peas.models.{self.name} with "
                    f"the config's settings has {wanted!r}; give weights of such a model, or set "
                    "the encoder's key of that meaning if it has one"
                )

    def fit(self, job: Import) -> Mapping[str, torch.Size]:
        """The model's own shapes: nothing is resized."""
        return {key: value.shape for key, value in job.model.state_dict().items()}

    def finish(self, job: Import) -> None:
        """Nothing but weights."""

    def has_pixel_head(self, state: Mapping[str, Tensor]) -> bool:
        """Never."""
        return False
