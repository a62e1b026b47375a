"""`peas`: pretrain, fine-tune, compare and use masked audio models."""

from typing import TYPE_CHECKING

from peas.utils.lazy import lazily
from peas.utils.processes import keep_arrow_from_threads

if TYPE_CHECKING:
    from peas.inference.loading import load
    from peas.inference.model import AudioModel

__all__ = ["AudioModel", "load"]
__version__ = "0.1.0"

__getattr__ = lazily(
    __name__, {"load": "peas.inference.loading", "AudioModel": "peas.inference.model"}
)

keep_arrow_from_threads()
