"""The batch: what the loader yields and what every later room reads and adds."""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from peas.audio.frontend import Spectrogram
from peas.masking.peas.selector import AxisPlan


class Batch(TypedDict, total=False):
    """Some clips on their way from files to scores.

    B clips, S samples, S' samples at a teacher's rate, T frames, F mel bins, C classes. The loader
    writes the first three groups of keys; the front end and the masking add the others on the
    device.

    Attributes:
        waveform: `[B, S]` float32, mono, padded with zeros to the longest clip.
        length: `[B]` int64, samples of each clip without the padding.
        target: `[B]` int64 class, or `[B, C]` float32 share of each class.
        id: Name of each clip in its data set.
        mixed: `[B]` bool, True where a partner was mixed into the clip.
        labelled: `[B]` bool, False where the clip, or what was mixed into it, has no class.

        teacher_waveform: `[B, S']` float32, the same clips at the teacher's rate, from the original
            sound. Only where a task has a live teacher, as is:
        teacher_length: `[B]` int64, samples of each clip in `teacher_waveform`.
        teacher_map: `[B, D, F', T']` float16, cached features of a teacher.

        step: Index of the global micro-batch in the epoch, from 0. Training only, as are:
        row: `[B]` int64, row of each clip in the global micro-batch.
        global_size: Rows of the global micro-batch, over all processes.

        log_mel: `[B, T, F]` float32, normalised; in training with noise and roll, never masked.
        frames: `[B]` int64, valid frames; the rest is padding.
        valid: `[B, T]` bool, True on real sound: inside the clip and not digital silence.
            Rolled with the clip.
        clean: What the front end gave, before noise, roll and mask. Training only, as are:
        roll: `[B]` int64, frames by which the clip was rolled.
        mask: `[B, T, F]` bool, True = masked, in the time of `log_mel`.
        masked_log_mel: `[B, T, F]` float32, what the model gets where there is a `mask`.
        mask_plan: Blocks along time and along frequency that made the mask, before any roll that
            comes after it; used for plots.
        hidden_patches: `[B, N]` bool, patches that the encoder does not see, in the model's own
            order of tokens.
    """

    waveform: Tensor
    length: Tensor
    target: Tensor
    id: list[str]
    mixed: Tensor
    labelled: Tensor

    teacher_waveform: Tensor
    teacher_length: Tensor
    teacher_map: Tensor

    step: int
    row: Tensor
    global_size: int

    log_mel: Tensor
    frames: Tensor
    valid: Tensor
    clean: Spectrogram
    roll: Tensor
    mask: Tensor
    masked_log_mel: Tensor
    mask_plan: tuple[AxisPlan, AxisPlan]
    dropped_patches: Tensor


class Item(NamedTuple):
    """One clip as the data set hands it to `collate`.

    Attributes:
        waveform: `[S]` float32.
        target: Class, or `[C]` float32 share of each class.
        id: Name of the clip in its data set.
        position: Position in the epoch's global order; None in evaluation.
        mixed: True when a partner was mixed in.
        silent: True when every sample of the file is zero.
        short: True when the file does not fill one frame of 25 ms.
        cut: True when the clip is longer than the model's input, which loses its end.
        labelled: False when the clip, or its partner, has no class.
        teacher: `[S']` float32, the clip at a teacher's rate; None = there is no teacher.
    """

    waveform: Tensor
    target: int | Tensor
    id: str
    position: int | None = None
    mixed: bool = False
    silent: bool = False
    short: bool = False
    cut: bool = False
    labelled: bool = True
    teacher: Tensor | None = None


class Unreadable(NamedTuple):
    """A clip that could not be read, instead of its `Item`.

    Attributes:
        id: Name of the clip in its data set.
        message: What is wrong with which file, for the user.
    """

    id: str
    message: str


def collate(items: Sequence[Item | Unreadable], global_size: int | None = None) -> Batch:
    """Put clips into a batch; clips that could not be read are left out.

    Args:
        items: At least one `Item`, and any number of `Unreadable`.
        global_size: Rows of the global micro-batch; None = these items are all of it.

    Returns:
        The loader's keys of the batch. `step`, `row` and `global_size` are there only if the
        items know their position, and the teacher's keys only if they have its waveform.
    """
    clips = [item for item in items if isinstance(item, Item)]
    targets = [torch.as_tensor(clip.target) for clip in clips]
    batch = Batch(
        waveform=pad_sequence([clip.waveform for clip in clips], batch_first=True),
        length=torch.tensor([clip.waveform.shape[0] for clip in clips]),
        target=torch.stack(targets),
        id=[clip.id for clip in clips],
        mixed=torch.tensor([clip.mixed for clip in clips]),
        labelled=torch.tensor([clip.labelled for clip in clips]),
    )
    teacher = [clip.teacher for clip in clips if clip.teacher is not None]
    if teacher:
        batch["teacher_waveform"] = pad_sequence(teacher, batch_first=True)
        batch["teacher_length"] = torch.tensor([waveform.shape[0] for waveform in teacher])
    positions = [clip.position for clip in clips if clip.position is not None]
    if positions:
        size = len(items) if global_size is None else global_size
        batch["step"] = positions[0] // size
        batch["row"] = torch.tensor(positions) % size
        batch["global_size"] = size
    return batch
