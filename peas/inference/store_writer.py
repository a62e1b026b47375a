"""Writes a store of embeddings: every clip of a set through a model, in shards, restartable."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peas import __version__
from peas.audio import decode as audio
from peas.data.clips import ClipTable, Inventory
from peas.data.columns import duplicates
from peas.data.fingerprint import Fingerprint
from peas.data.shards import LeftOut, Progress, Shard, ShardWriter
from peas.data.workers import WorkerDied, in_order
from peas.errors import AudioError, ConfigError, DataError, PeasError
from peas.inference.model import AudioModel, Bands, Pool
from peas.inference.store import (
    MANIFEST,
    ClipFrames,
    Columns,
    Embeddings,
    EmbeddingStore,
    Manifest,
    StoredShard,
    read_manifest,
    shard_name,
    write_index,
    write_shard,
)
from peas.utils.files import atomic_write, require_space
from peas.utils.text import some

log = logging.getLogger(__name__)

SHARD_CLIPS, SHARD_CLIPS_OF_FRAMES = 256, 32
"""Clips of a shard, which is in memory until it is written; frames take a hundred times more."""
_CHUNK = 8
"""Clips that a worker takes at once. Larger batches are not faster on one thread."""
_SECONDS_A_CLIP = 600.0
"""After which a worker counts as hanging."""
_FOLD = "fold "

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Options:
    """How clips are embedded.

    Attributes:
        layers: Numbers of the layers, none negative; see `layer_numbers`.
        pool: As in `AudioModel.embed`.
        bands: What becomes of the patches of one time in frames, as in `AudioModel.frames`;
            None = no frames.
        overlap: Share of a window that the next one repeats.
        precision: Of the encoder; embeddings are stored in float32.
        batch_size: Windows in a pass of the encoder.
        workers: Processes: on the CPU they embed, each on one thread; for a GPU they decode.
            0 = this one.
        skip: Whether clips that cannot be read are left out.
        shard_clips: Clips of a shard.
    """

    layers: list[int]
    pool: Pool = "mean"
    bands: Bands | None = None
    overlap: float = 0.0
    precision: Precision = "float32"
    batch_size: int = 16
    workers: int = 0
    skip: bool = False
    shard_clips: int = SHARD_CLIPS

    def of_model(self) -> dict[str, Any]:
        """Those of `AudioModel.encode`."""
        names = ("layers", "pool", "bands", "overlap", "batch_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Source:
    """Clips that are embedded.

    Attributes:
        name: Of the set in `peas data`; `clips` for loose files.
        table: The clips.
        columns: What the store keeps of them.
        labels: Names of the classes.
        multi_label: Whether a clip may have several classes.
    """

    name: str
    table: ClipTable
    columns: Columns
    labels: list[str] = field(default_factory=list)
    multi_label: bool = False

    @classmethod
    def of_set(
        cls, name: str, inventory: Inventory, labels: list[str], *, multi_label: bool
    ) -> Source:
        """Every clip of a set.

        Args:
            name: Of the set in `peas data`.
            inventory: Its clips.
            labels: Names of its classes.
            multi_label: Whether a clip may have several.
        """
        table = inventory.table
        parts = [part.removeprefix(_FOLD) for part in inventory.parts]
        columns = Columns(
            list(table.ids),
            table.targets,
            [parts[number] for number in inventory.part],
            None if inventory.recordings is None else list(inventory.recordings),
            None if inventory.speakers is None else list(inventory.speakers),
        )
        return cls(name, table, columns, labels, multi_label)

    def take(self, rows: Sequence[int]) -> Source:
        """Some of the clips."""
        return replace(self, table=self.table.take(rows), columns=self.columns.take(rows))

    def fingerprint(self) -> str:
        """Hash of names, classes, columns, and sizes and times of modification of sound files.

        Not of their paths: a set that was moved with its times is the same.
        """
        clips, sounds = Fingerprint.of(self.table), self.table.sounds
        rows = np.arange(len(self.table))
        times = np.array([_modified(sounds.file(row)) for row in range(len(rows))], dtype=np.int64)
        digest = hashlib.blake2b(digest_size=16)
        # The extents of every row, as `Fingerprint` looks at some files of a large set only.
        for values in (clips.ids.numpy(), clips.classes.numpy(), sounds.extents(rows), times):
            digest.update(values.tobytes())
        columns = self.columns
        names = [self.labels, columns.split, columns.recording, columns.speaker]
        digest.update(json.dumps(names).encode())
        return digest.hexdigest()


def _modified(file: str) -> int:
    """Time of modification in ns; 0 where there is no such file."""
    try:
        return Path(file).stat().st_mtime_ns if file else 0
    except OSError:
        return 0


class Encoded(NamedTuple):
    """Consecutive clips that are done.

    Attributes:
        rows: Those that were embedded.
        embeddings: `[L, n, D]`.
        frames: Of each, `[L, T', D']`; empty if there are none.
        left_out: Rows that could not be read, and why.
    """

    rows: list[int]
    embeddings: Embeddings
    frames: list[Embeddings]
    left_out: list[tuple[int, str]]


def layer_numbers(model: AudioModel, layers: Sequence[int] | Literal["all"] | None) -> list[int]:
    """Layers of a model by their numbers from 0.

    Args:
        model: The model.
        layers: Numbers, negative ones from the end; `all`; None = the encoder's output.

    Raises:
        ConfigError: There is no such layer, or one is there twice.
    """
    if layers == "all":
        return list(range(model.layers + 1))
    given = [model.layers] if layers is None else layers
    numbers = [model.encoder.layer_number(layer) for layer in given]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(f"layers is {list(given)}: give each layer once, and at least one")
    return numbers


def model_fingerprint(model: AudioModel) -> str:
    """SHA-256 of a model's weights and settings: equal for a run, its checkpoint and its export."""
    settings = [model.encoder.spec(), model.front_end.spec(), model.front_end.frames]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_embeddings(
    out: Path,
    model: AudioModel,
    source: Source,
    options: Options,
    *,
    checkpoint: str = "",
    progress: Progress = lambda done, total: None,
) -> EmbeddingStore:
    """Write a store, or what a killed run did not.

    The files depend on model, clips and options alone: on the CPU not on the number of workers,
    nor on restarts. A complete folder stays as it is.

    Args:
        out: The folder: new, empty, or begun by the same call.
        model: In float32.
        source: The clips.
        options: How they are embedded.
        checkpoint: Where the model is from, for the settings.
        progress: Called with the clips done and the clips in all.

    Raises:
        AudioError: A clip cannot be read.
        ConfigError: An option is impossible.
        DataError: The folder holds something else or was begun with other settings, or its disk is
            full; or embeddings are not finite.
        PeasError: Another process is writing there, or a worker died.
    """
    if not len(source.table):
        raise DataError(f"{source.name}: there is no clip to embed")
    if twice := duplicates(source.table.ids.array):
        raise DataError(
            f"{len(twice)} ids name more than one clip: {some(twice)}; give each clip its own"
        )
    # A missing file and an impossible option begin no folder.
    if not options.skip:
        _require_files(source)
    list(model.encode([], **options.of_model()))
    settings = {
        # Absolute: `peas probe` asks the run what it was trained on, from wherever it is called.
        "checkpoint": checkpoint if "://" in checkpoint else str(Path(checkpoint).absolute()),
        "model": model_fingerprint(model),
        "set": source.name,
        "clips": len(source.table),
        "fingerprint": source.fingerprint(),
        "layers": ",".join(map(str, options.layers)),
        "pool": options.pool,
        "bands": options.bands,
        "overlap": options.overlap,
        "input_frames": model.encoder.frames,
        "rate": model.sample_rate,
        "channels": model.front_end.channels or "mean",
        "resampler": audio.RESAMPLER,
        "precision": options.precision,
        "shard_clips": options.shard_clips,
        "peas": __version__,
    }
    if options.precision == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16)
    EmbeddingWriter(
        out, settings, model, source, options, skip=options.skip, progress=progress
    ).run()
    return EmbeddingStore(out)


def _require_files(source: Source) -> None:
    files = ((row, source.table.sounds.file(row)) for row in range(len(source.table)))
    missing = [row for row, file in files if file and not Path(file).exists()]
    if missing:
        raise AudioError(
            f"{source.table.sounds.file(missing[0])}: there is no such file (clip "
            f"{source.columns.ids[missing[0]]}), and {len(missing)} are missing in all. To leave "
            f"out such clips give {EmbeddingWriter.skip_option}"
        )


class EmbeddingWriter(ShardWriter[Manifest, Encoded]):
    """Shards are Arrow files of a fixed number of clips."""

    state_file = MANIFEST
    skip_option = "--on_error skip"
    checksums = True
    option_names = {  # noqa: RUF012
        "model": "--checkpoint (its weights)",
        "set": "SET",
        "clips": "the number of clips",
        "fingerprint": "the set's clips, classes, splits, recordings, speakers or files (their "
        "fingerprint)",
        "layers": "--layers",
        "pool": "--pool",
        "bands": "--frames with --bands",
        "overlap": "--overlap",
        "input_frames": "--input_frames",
        "precision": "--precision",
        "shard_clips": "--shard_clips",
        "peas": "the version of peas",
    }

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, Any],
        model: AudioModel,
        source: Source,
        options: Options,
        **common: Any,
    ) -> None:
        super().__init__(out, settings, len(source.table), **common)
        self.model = model
        self.source = source
        self.options = options
        self.manifest = Manifest(
            dict(settings),
            options.layers,
            source.labels,
            source.multi_label,
            options.bands is not None,
        )

    def resume(self) -> Manifest | None:
        """Read the manifest, and drop what is damaged."""
        if not (self.out / MANIFEST).is_file():
            return None
        manifest = read_manifest(self.out)
        if not manifest.shards:
            return None
        complete = manifest.index is not None and not manifest.index.fault(
            self.out, checksums=self.checksums
        )
        # Another version might give other numbers, but these are complete.
        self.require_settings(
            manifest.settings, but=("checkpoint", *(("peas", "resampler") if complete else ()))
        )
        for stored in manifest.shards:
            shard = Shard(
                range(stored.first, stored.stop), stored if stored.file else None, stored.left_out
            )
            if fault := self.fault(shard):
                log.warning("%s: written again", fault)
            else:
                self.shards.append(shard)
        return manifest if complete and not self._missing() else None

    def prepare(self, missing: list[range]) -> None:
        """Check the disk space, as far as it is known before."""
        width = self.model.dim * (2 if self.options.pool == "mean+std" else 1)
        size = 4 * width * len(self.options.layers) * sum(map(len, missing))
        require_space(self.out / MANIFEST, size)

    def encode(self, missing: list[range]) -> Generator[Encoded]:
        """Embed the missing clips; no result reaches beyond its shard.

        Raises:
            AudioError: A clip cannot be read, and none may be left out.
            PeasError: A worker died.
        """
        size = self.options.shard_clips
        shards = [
            range(first, min(first + size, gap.stop))
            for gap in missing
            for first in range(gap.start, gap.stop, size)
        ]
        if self.model.device.type == "cpu":
            # Clips beside each other on one thread each: a clip on all of them would wait more.
            chunk = 1 if self.options.bands else _CHUNK
            chunks = _split(shards, chunk)
            return self._checked(self._each(chunks, lambda rows: self._embed(rows, self._read)))
        chunks = _split(shards, 2)
        sounds = self._each(chunks, lambda rows: [self._read(row) for row in rows])
        return self._checked(self._on_device(sounds, shards))

    def write(self, encoded: Generator[Encoded], rows: range) -> Shard:
        """Write one shard."""
        size = self.options.shard_clips
        rows = range(rows.start, min(rows.start + size, rows.stop))
        parts: list[Encoded] = []
        while sum(len(part.rows) + len(part.left_out) for part in parts) < len(rows):
            parts.append(next(encoded))
        ids = self.source.columns.ids
        left_out = [LeftOut(ids[row], reason) for part in parts for row, reason in part.left_out]
        done = [row for part in parts for row in part.rows]
        if not done:
            return Shard(rows, None, left_out)
        frames = None
        if self.options.bands is not None:
            frames = [
                ClipFrames(clip, self.model.times(clip.shape[1]).numpy())
                for part in parts
                for clip in part.frames
            ]
        stored = write_shard(
            self.out / shard_name(rows.start // size),
            self.options.layers,
            [ids[row] for row in done],
            np.concatenate([part.embeddings for part in parts if part.rows], axis=1),
            frames,
        )
        return Shard(rows, stored, left_out)

    def state(self) -> dict[str, Any]:
        """The manifest."""
        self.manifest.shards = [
            StoredShard(
                *((one.file.file, one.file.bytes, one.file.checksum) if one.file else ("", 0, "")),
                one.rows.start,
                one.rows.stop,
                one.left_out,
            )
            for one in self.shards
        ]
        return self.manifest.to_json()

    def finish(self) -> Manifest:
        """Write the index, with which the store is complete."""
        if len(self.left_out) == self.rows:
            raise DataError(
                f"{self.out}: not one of the {self.rows} clips could be read, the first being: "
                f"{self.left_out[0].reason}"
            )
        columns = self.source.columns
        if unreadable := {clip.id for clip in self.left_out}:
            columns = columns.take(
                [row for row, name in enumerate(columns.ids) if name not in unreadable]
            )
        self.manifest.index = write_index(self.out, columns)
        self.save()
        return self.manifest

    def _each(self, chunks: list[range], work: Any) -> Generator[Any]:
        """Results of the chunks, in order, from worker processes."""
        results = in_order(
            lambda numbers: work(chunks[numbers.start]),
            len(chunks),
            size=1,
            workers=self.options.workers,
            timeout=_SECONDS_A_CLIP * max(map(len, chunks)),
        )
        with closing(results):
            try:
                yield from results
            except WorkerDied as error:
                clips = [
                    self.source.columns.ids[row] for number in error.rows for row in chunks[number]
                ]
                raise PeasError(f"{error}: {some(clips, _CHUNK)}") from None

    def _read(self, row: int) -> NDArray[np.float32] | str:
        """A waveform, or why there is none."""
        try:
            waveform = self.source.table.sounds.load(row, None, self.model.sample_rate)
        except AudioError as error:
            if not self.skip:
                raise AudioError(
                    f"{error} (clip {self.source.columns.ids[row]}). To leave out such clips give "
                    f"{self.skip_option}; the same command resumes after the finished shards"
                ) from error
            return str(error)
        return waveform.numpy()

    def _on_device(self, sounds: Generator[Any], shards: list[range]) -> Generator[Encoded]:
        """Embed decoded clips in this process."""
        with closing(sounds):
            each = (sound for chunk in sounds for sound in chunk)
            for shard in shards:
                # A result as soon as there is one, so that progress is seen.
                for first in range(shard.start, shard.stop, self.options.batch_size):
                    rows = range(first, min(first + self.options.batch_size, shard.stop))
                    batch = dict(zip(rows, islice(each, len(rows)), strict=True))
                    yield self._embed(rows, batch.__getitem__)

    def _embed(self, rows: range, read: Any) -> Encoded:
        """Embed some clips; each is read when its turn comes."""
        done: list[int] = []
        left_out: list[tuple[int, str]] = []

        def waveforms() -> Iterator[Tensor]:
            for row in rows:
                sound = read(row)
                if isinstance(sound, str):
                    left_out.append((row, sound))
                else:
                    done.append(row)
                    yield torch.from_numpy(sound)

        options = self.options
        clips = list(self.model.encode(waveforms(), **options.of_model()))
        embeddings = np.zeros((len(options.layers), 0, 0), dtype=np.float32)
        if clips:
            embeddings = torch.stack([clip.embedding for clip in clips], dim=1).numpy()
        frames = [clip.frames.numpy() for clip in clips] if options.bands else []
        return Encoded(done, embeddings, frames, left_out)

    def _checked(self, results: Generator[Encoded]) -> Generator[Encoded]:
        with closing(results):
            for result in results:
                finite = np.isfinite(result.embeddings).all(axis=(0, 2))
                if not finite.all():
                    bad = [result.rows[number] for number in np.flatnonzero(~finite)]
                    raise DataError(
                        f"embeddings of {some(self.source.columns.ids[row] for row in bad)} are "
                        "NaN or infinite: take an earlier checkpoint, or --precision float32"
                    )
                self.advance(len(result.rows) + len(result.left_out))
                yield result


def _split(shards: Sequence[range], size: int) -> list[range]:
    return [
        range(first, min(first + size, shard.stop))
        for shard in shards
        for first in range(shard.start, shard.stop, size)
    ]


def write_npz(store: EmbeddingStore, file: Path) -> None:
    """Write a store as one npz file, without frames.

    Arrays: `ids`, `embeddings` `[N, D]` or `[L, N, D]`, `layers`, `labels`, `classes` `[N]` or
    `targets` `[N, C]`, `split`, and `recording` and `speaker` where they are known, empty for a
    clip without one.

    Args:
        store: The store.
        file: Where to; its folder must exist.
    """
    arrays: dict[str, Any] = {
        "ids": np.array(store.ids),
        "embeddings": store.embeddings(),
        "layers": np.array(store.layers),
        "labels": np.array(store.labels, dtype=str),
        "split": np.array(store.split),
    }
    if store.labels:
        name = "targets" if store.multi_label else "classes"
        arrays[name] = store.targets if store.multi_label else store.classes
    for name in ("recording", "speaker"):
        if (values := getattr(store, name)) is not None:
            # An array of None would need pickle.
            arrays[name] = np.array([value or "" for value in values], dtype=str)
    with atomic_write(file) as stream:
        np.savez(stream, **arrays)
