"""A teacher's feature maps of the clips of a set: made once, and read in place of the teacher."""

from peas.data.targets.cache import TargetCache

__all__ = ["TargetCache"]
