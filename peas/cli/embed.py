"""`peas embed`: embeddings of a set, or of sound files, in one store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peas.cli.data.sets import Bar, DataSet
from peas.errors import ConfigError, DataError, UsageError, say
from peas.utils.text import some

if TYPE_CHECKING:
    from peas.inference.model import AudioModel
    from peas.inference.store import EmbeddingStore
    from peas.inference.store_writer import Source


def embed(
    clips: list[str],
    *,
    data_set: DataSet | None = None,
    checkpoint: str,
    out: str,
    layers: str | None = None,
    pool: Literal["mean", "cls", "mean+std"] = "mean",
    frames: bool = False,
    bands: Literal["concat", "mean"] = "concat",
    overlap: float = 0.0,
    input_frames: int | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    precision: Literal["float32", "bf16"] = "float32",
    device: str | None = None,
    allow_module: list[str] | None = None,
    npz: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    shard_clips: int | None = None,
) -> None:
    """Embed every clip of a set (SET ROOT), or sound files, into one store.

    After an interruption the same command resumes. `peas.inference.EmbeddingStore` and `peas
    probe` read the result. In place of CLIPS, SET ROOT as for `peas data` takes every clip of a
    set, with classes and splits; `peas embed SET --help` lists the options of a set.

    Args:
        clips: Sound files of any rate and length, or folders of them; their paths are the ids.
        data_set: A set instead.
        checkpoint: best.ckpt or last.ckpt of a run, a run's folder, an exported folder, an official
            file, or hf://owner/name.
        out: Folder of the store: new or empty.
        layers: Numbers such as 3,6,12, or `all`; 0 = before the first block, -1 = the output,
            which is the default.
        pool: Mean of the patches, of the special tokens, or mean and standard deviation of the
            patches.
        frames: Also embeddings over time, with times in ms.
        bands: What becomes of the patches of one time in frames.
        overlap: Share of a window of a long clip that the next one repeats.
        input_frames: Frames of the model's input, if not those of its training.
        batch_size: Windows in a pass of the encoder.
        workers: Processes; default one a core; 0 = this one.
        precision: Of the encoder.
        device: Default: cuda where there is one, else cpu.
        allow_module: Module whose parts the checkpoint may name, with those below it, besides
            `peas`; its code is executed. May be repeated.
        npz: Also write ids, embeddings and classes to this one new file.
        on_error: What happens at a clip that cannot be read: stop, or leave it out and list it.
        shard_clips: Clips of a shard; default 256, or 32 with --frames.

    Raises:
        PeasError: A clip cannot be read, or the store cannot be written; see
            `peas.inference.store_writer.write_embeddings`.
    """
    from peas.parts import is_dotted

    for name, value in (("batch_size", batch_size), ("shard_clips", shard_clips)):
        if value is not None and value < 1:
            raise UsageError(f"`--{name}` is {value}: give 1 or more")
    for module in allow_module or []:
        if not is_dotted(module):
            raise UsageError(f"`--allow_module` is {module!r}: give PACKAGE.MODULE")
    chosen = _layers(layers)
    npz_file = None if npz is None else Path(npz).expanduser()
    if npz_file is not None and not npz_file.absolute().parent.is_dir():
        raise ConfigError(f"--npz {npz}: there is no folder {npz_file.parent}; make it")
    if npz_file is not None and npz_file.exists():
        raise ConfigError(f"--npz {npz}: is there already; give another, or delete it")
    from peas import load
    from peas.data.workers import default_workers
    from peas.inference.store_writer import (
        SHARD_CLIPS,
        SHARD_CLIPS_OF_FRAMES,
        Options,
        layer_numbers,
        write_embeddings,
        write_npz,
    )

    if device is not None:
        _require_device(device)
    model = load(checkpoint, device, input_frames=input_frames, modules=allow_module or [])
    options = Options(
        layer_numbers(model, chosen),
        pool,
        bands if frames else None,
        overlap,
        precision,
        batch_size,
        default_workers() if workers is None else workers,
        on_error == "skip",
        shard_clips or (SHARD_CLIPS_OF_FRAMES if frames else SHARD_CLIPS),
    )
    source = source_of_files(clips, model) if data_set is None else _of_set(data_set, model)
    folder = Path(out).expanduser()
    with Bar() as bar:
        show = bar.of(source.name)
        store = write_embeddings(
            folder,
            model,
            source,
            options,
            checkpoint=checkpoint,
            progress=lambda done, total: show("embeddings", done, total),
        )
    if npz_file is not None:
        write_npz(store, npz_file)
    say(summary(store))


def summary(store: EmbeddingStore) -> str:
    """Content of a store, for the user.

    Args:
        store: The store.
    """
    size = sum(path.stat().st_size for path in store.folder.glob("*.arrow"))
    layers = ", ".join(map(str, store.layers))
    lines = [
        f"{store.folder}: embeddings of {len(store):,} clips, layer{'s'[: len(store.layers) > 1]} "
        f"{layers}{', with frames' * store.has_frames}, {size / 1e6:,.1f} MB"
    ]
    if store.left_out:
        names = [clip.id for clip in store.left_out]
        lines.append(
            f"  {len(names):,} clips could not be read and were left out: {some(names)} (all in "
            "manifest.json)"
        )
    return "\n".join(lines)


def _require_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    # What a build of PyTorch without the device raises differs by device.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"`--device` is {name!r}, which cannot be used ({reason}): give cpu, cuda or cuda:1"
        ) from None


def _layers(text: str | None) -> list[int] | Literal["all"] | None:
    if text is None:
        return None
    if text == "all":
        return "all"
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"`--layers` is {text!r}: give numbers such as 3,6,12, or all") from None


def _of_set(data_set: DataSet, model: AudioModel) -> Source:
    from peas.inference.store_writer import Source

    module, wanted = data_set.module, model.front_end.channels
    if wanted and module.channel_mode != wanted:
        module = data_set.changed(channels=wanted)
    if wanted and module.channel_mode not in (None, wanted):
        raise ConfigError(
            f"{data_set.root} holds the {module.channel_mode} of several channels, and the model "
            f"was trained on their {wanted}: pack the set with --channels {wanted}"
        )
    return Source.of_set(
        data_set.name, module.inventory(), list(module.labels), multi_label=module.multi_label
    )


def source_of_files(clips: list[str], model: AudioModel) -> Source:
    """Loose files, and those below folders."""
    import os

    from peas.data.cache import ResampledCache
    from peas.data.clips import ClipTable
    from peas.data.columns import Strings, Targets
    from peas.data.sounds import SoundFiles
    from peas.data.walk import is_utf8, walk
    from peas.inference.store import Columns
    from peas.inference.store_writer import Source

    paths: list[str] = []
    for clip in clips:
        if not is_utf8(clip):
            raise DataError(f"{clip!a}: not UTF-8, which tables need; rename it")
        if not Path(clip).is_dir():
            paths.append(clip)
            continue
        found = walk(Path(clip)).sorted_paths()
        if not found:
            raise DataError(f"{clip}: the folder holds no sound files")
        paths += [os.path.join(clip, path) for path in found]
    decoder = ResampledCache(
        None, rate=model.sample_rate, channels=model.front_end.channels or "mean"
    )
    names, none = Strings(paths), Targets.none(len(paths))
    table = ClipTable(names, none, SoundFiles(decoder, Path(), names))
    return Source("clips", table, Columns(paths, none, [""] * len(paths)))
