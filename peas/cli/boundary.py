"""Which errors of Python and of the libraries below are no fault of `peas`, and what to say then.

Every verb has one boundary, `peas.__main__.main`: it prints one message of an error that is known
here and ends with status 1. Any other exception keeps its traceback.
"""

import errno

from peas.errors import PeasError

UNEXPECTED = (
    "peas {verb}: this error was not foreseen. Please report it with the lines above, the command "
    "and the output of `peas doctor`. A run that has saved a checkpoint resumes with "
    "`--ckpt_path last`."
)
"""Last line of a traceback."""

SURROUNDINGS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH),
    *(errno.ETIMEDOUT, errno.EADDRINUSE),
}
"""Errors of the system that may come without a file's name: disks, limits, networks."""

HINTS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EMFILE: "raise the limit (`ulimit -n`), or lower the number of workers",
    errno.ENFILE: "raise the limit (`ulimit -n`), or lower the number of workers",
    errno.ENOMEM: "lower the batch size, or the number of workers",
}


def known(error: Exception) -> str | None:
    """The message for a user; None where the error is a fault of ours.

    Args:
        error: What ended a verb.
    """
    if isinstance(error, PeasError):
        return str(error)
    if isinstance(error, OSError):
        if error.filename is None and error.errno not in SURROUNDINGS:
            return None
        what = f"{error.filename}: " if error.filename is not None else ""
        hint = HINTS.get(error.errno or 0)
        return f"{what}{error.strerror or error}" + (f": {hint}" if hint else "")
    if isinstance(error, MemoryError):
        return "memory is short: lower the batch size, or the number of workers"
    # torch is not imported for this: its class is there only if torch is.
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "the GPU's memory is short: lower `data.init_args.batch_size` (and raise "
            f"`trainer.accumulate_grad_batches`), or use another precision. {_first_line(error)}"
        )
    if isinstance(error, RuntimeError | AssertionError):
        text = _first_line(error)
        if "home directory" in text:
            return "~ stands for a home, and this user has none: write the whole path"
        from peas.cli.errors import no_device

        if (advice := no_device(text)) != text:
            return advice
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
