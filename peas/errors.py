"""Errors that a user can act on.

Each message names the file or key, says what is wrong and what to do next. The command line
prints it without a traceback and exits with status 1.
"""


class PeasError(Exception):
    """Base of every error whose cause lies in the user's files, data or settings."""


class AudioError(PeasError):
    """A sound file or byte string cannot be used."""


class DataError(PeasError):
    """A data set is missing, incomplete or contradicts itself."""


class CheckpointError(PeasError):
    """A checkpoint is missing, damaged, unsafe or of another kind."""


class ConfigError(PeasError):
    """A setting is impossible, or contradicts another one."""


class NoReconstruction(PeasError):
    """The model has no head that turns tokens back into a spectrogram."""
