"""`peas`: pretrain, fine-tune and compare masked audio models."""

from peas.utils.processes import keep_arrow_from_threads

__version__ = "0.1.0"

keep_arrow_from_threads()
