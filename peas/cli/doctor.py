"""`peas doctor`: versions, devices, decoders, folders, and what is missing."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from peas.errors import PeasError, UsageError, say


def _versions() -> str:
    from peas.callbacks.run_files import versions

    found = versions()
    missing = [name for name, version in found.items() if version == "not installed"]
    if missing:
        raise PeasError(f"{', '.join(missing)} not installed: run `make install`")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _python() -> str:
    version = sys.version.split()[0]
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        raise PeasError(f"{version}: peas needs 3.11 or 3.12")
    return version


def _torchaudio() -> str:
    try:
        import torch
        from torchaudio.functional import resample

        resample(torch.zeros(100), 8_000, 16_000)
    # A wheel of another build fails with whatever its loader raises.
    except Exception as error:
        raise PeasError(
            f"cannot be imported ({error}): its wheel needs the CUDA build of torch, also without "
            "a GPU. Install the set in constraints.txt"
        ) from error
    return "imports, resamples"


def _devices() -> str:
    import torch

    threads = f"{torch.get_num_threads()} CPU threads"
    if not torch.cuda.is_available():
        return f"{threads}, no CUDA GPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    half = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16"
    return f"{threads}, {len(names)} GPU: {', '.join(names)} ({half})"


def _decoders() -> str:
    import soundfile

    formats = soundfile.available_formats()
    lacking = [name for name in ("WAV", "FLAC", "OGG", "MP3") if name not in formats]
    if lacking:
        raise PeasError(f"libsndfile lacks {', '.join(lacking)}: reinstall soundfile's wheel")
    opus = "opus" if "OPUS" in soundfile.available_subtypes("OGG") else "no opus"
    ffmpeg = "ffmpeg found" if shutil.which("ffmpeg") else "no ffmpeg (m4a and webm need it)"
    return f"wav, flac, ogg, {opus}, mp3 by {soundfile.__libsndfile_version__}; {ffmpeg}"


def _cache() -> str:
    from peas.data.cache import default_folder

    folder = default_folder()
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    # Without a home `expanduser` raises a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise PeasError(
            f"{folder} cannot be written ({error}): every epoch will resample. Set PEAS_CACHE"
        ) from error
    return f"{folder}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free"


def _run_folder() -> str:
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        raise PeasError(f"{here} cannot be written: give `--trainer.default_root_dir`")
    return f"{here / 'runs'} (or `--trainer.default_root_dir`)"


def _wandb() -> str:
    mode = os.environ.get("WANDB_MODE", "offline unless a config or WANDB_MODE asks")
    return f"{mode}; never prompts"


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "versions": _versions,
    "torchaudio": _torchaudio,
    "devices": _devices,
    "decoders": _decoders,
    "cache": _cache,
    "runs": _run_folder,
    "wandb": _wandb,
}


def doctor(
    *fit_args: str,
    cluster: bool = False,
    data: tuple[str, str] | None = None,
    run_dir: str | None = None,
    timeout: float = 120.0,
) -> int:
    """Check versions, devices, decoders and folders; report what is missing.

    With --cluster, started by every rank of a job as training would be (`srun peas doctor
    --cluster ...` or `torchrun --no-python ... peas doctor --cluster ...`), it compares what the
    ranks see. It then takes `--data SET ROOT`, or the arguments of `peas fit` (`--config`,
    overlays, overrides), whose data set it opens and whose run folder it tries. No sound is
    decoded.

    Args:
        fit_args: With --cluster, arguments of `peas fit`.
        cluster: Compare all ranks of a job.
        data: With --cluster, SET ROOT as for `peas data`.
        run_dir: With --cluster, folder of the run; default: that of the config, or runs.
        timeout: With --cluster, seconds to wait for the other ranks.

    Returns:
        The exit status: 1 on all ranks when they disagree; rank 0 reports why.

    Raises:
        PeasError: Something is missing, or the ranks disagree.
    """
    if cluster:
        from peas.cli.cluster import compare_ranks

        return compare_ranks(data, run_dir, timeout, list(fit_args))
    if fit_args or data or run_dir:
        raise UsageError(
            f"{' '.join([*fit_args, *(data or ()), run_dir or '']).strip()}: needs --cluster"
        )
    missing = []
    for name, check in CHECKS.items():
        try:
            say(f"ok       {name:<11} {check()}")
        except PeasError as error:
            missing.append(name)
            say(f"MISSING  {name:<11} {error}")
    if missing:
        raise PeasError(f"{', '.join(missing)}: see above")
    return 0
