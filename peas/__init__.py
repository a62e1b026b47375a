"""`peas`: pretrain, fine-tune and compare masked audio models."""

__version__ = "0.1.0"
