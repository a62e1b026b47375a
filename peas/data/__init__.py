"""Data sets as Lightning data modules: waveforms, targets and metadata."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily

if TYPE_CHECKING:
    from peas.data.audioset.module import AudioSet
    from peas.data.clips import ClipTable
    from peas.data.columns import Targets
    from peas.data.esc50 import ESC50
    from peas.data.folder.module import AudioFolder
    from peas.data.librispeech import LibriSpeech
    from peas.data.mixture import Mixture
    from peas.data.module import SPLITS, ClipDataModule, Split
    from peas.data.packed.module import PackedSet
    from peas.data.speech_commands.module import SpeechCommands
    from peas.data.synthetic import SyntheticSounds

__all__ = [
    "ESC50",
    "SPLITS",
    "AudioFolder",
    "AudioSet",
    "ClipDataModule",
    "ClipTable",
    "LibriSpeech",
    "Mixture",
    "PackedSet",
    "SpeechCommands",
    "Split",
    "SyntheticSounds",
    "Targets",
]

__getattr__ = lazily(
    __name__,
    {
        "AudioFolder": "peas.data.folder.module",
        "AudioSet": "peas.data.audioset.module",
        "ClipDataModule": "peas.data.module",
        "ClipTable": "peas.data.clips",
        "ESC50": "peas.data.esc50",
        "LibriSpeech": "peas.data.librispeech",
        "Mixture": "peas.data.mixture",
        "PackedSet": "peas.data.packed.module",
        "SPLITS": "peas.data.module",
        "SpeechCommands": "peas.data.speech_commands.module",
        "Split": "peas.data.module",
        "SyntheticSounds": "peas.data.synthetic",
        "Targets": "peas.data.columns",
    },
)
