"""`peas data targets`: a teacher's maps of every clip, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peas.cli.data.sets import SETS, Bar, DataSet
from peas.errors import ConfigError, DataError, say
from peas.utils.text import some

if TYPE_CHECKING:
    from peas.cli.parser import VerbParser
    from peas.data.clips import ClipTable
    from peas.data.shards import LeftOut
    from peas.teachers import Teacher
    from peas.teachers.cache import Manifest, TargetSettings
    from peas.teachers.grid import Extent
    from peas.teachers.target_writer import MapSource

    Prepared = tuple[ClipTable, MapSource, TargetSettings, list[LeftOut]]
    """Clips that get a map, their source, what is written, and clips without a map."""

TEACHER_HELP = "a teacher's class, such as LaionClapTeacher with --teacher.checkpoint FILE"


def add_arguments(parser: VerbParser, argv: Sequence[str]) -> list[str]:
    """Adds --teacher with the arguments of its class; for help without SET its name alone."""
    if not {*SETS} & {*argv}:
        parser.add_argument("--teacher", type=str, metavar="CLASS", help=TEACHER_HELP)
        return ["teacher"]
    from peas import teachers

    if any(word.startswith("--teacher") or word in ("-h", "--help") for word in argv):
        # A class is known by its name alone once it is imported.
        for name in teachers.__all__:
            getattr(teachers, name)
    parser.add_subclass_arguments(teachers.Teacher, "teacher", required=False, help=TEACHER_HELP)
    return ["teacher"]


def targets(
    data_set: DataSet,
    *,
    out: str,
    teacher: Any = None,
    maps: str | None = None,
    extent: str | None = None,
    key: str | None = None,
    only: Literal["train", "validation", "test"] | None = None,
    allow_missing: bool = False,
    batch_size: int = 8,
    workers: int | None = None,
    device: str | None = None,
    shard_clips: int = 4096,
) -> None:
    """Run a teacher over every clip of a set, or take ready maps, as targets of pretraining.

    They are kept as float16. After an interruption the same command resumes; on a finished folder
    it compares checksums and recomputes what is damaged.

    Args:
        data_set: The set.
        out: Folder of the cache: new or empty.
        teacher: A teacher's class.
        maps: Ready maps instead of a teacher: an npz of ids and one array.
        extent: JSON with the times and frequencies of the bins of ready maps.
        key: Name of the ready maps' array, if there are several.
        only: The clips of one split; default: every clip.
        allow_missing: Leave out clips without a ready map, or that cannot be read, and list them.
        batch_size: Clips at once.
        workers: Processes that read; default one a core; 0 = this one.
        device: Default: cuda where there is one, else cpu.
        shard_clips: Clips of a file.

    Raises:
        ConfigError: An option is out of its range, or contradicts another one.
        PeasError: A clip has no map, or the cache cannot be written; see
            `peas.teachers.target_writer.write_targets`.
    """
    if (teacher is None) == (maps is None):
        raise ConfigError("give either --teacher, or --maps and --extent")
    if (maps is None) != (extent is None):
        raise ConfigError("--maps and --extent go together: give both, or --teacher alone")
    if key is not None and maps is None:
        raise ConfigError("--key names the array of --maps: give both, or neither")
    for name, value in (("batch_size", batch_size), ("shard_clips", shard_clips)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}: give 1 or more")
    from peas.teachers.target_writer import sorted_ids, write_targets

    module = data_set.module
    table = module.clips(only) if only else module.inventory().table
    if not len(table):
        raise DataError(f"{module.root}: there is no clip to make a target of")
    table = table.take(sorted_ids(table.ids))
    if maps is not None and extent is not None:
        prepared = _from_file(data_set, table, maps, extent, key, allow_missing, shard_clips)
    else:
        prepared = _from_teacher(
            data_set, table, teacher, allow_missing, batch_size, workers, device, shard_clips
        )
    table, source, recipe, left_out = prepared
    folder = Path(out).expanduser()
    with Bar() as bar:
        show = bar.of(data_set.name)
        manifest = write_targets(
            folder,
            recipe,
            table.ids,
            source,
            left_out=left_out,
            allow_missing=allow_missing,
            progress=lambda done, total: show("targets", done, total),
        )
    say(summary(folder, manifest))


def _from_file(
    data_set: DataSet,
    table: ClipTable,
    maps: str,
    extent: str,
    key: str | None,
    allow_missing: bool,
    shard_clips: int,
) -> Prepared:
    import numpy as np

    from peas.data.shards import LeftOut
    from peas.teachers.ready_maps import ReadyMapSource, read_ready

    file = Path(maps).expanduser()
    ready = read_ready(file, Path(extent).expanduser(), key)
    rows, missing = ready.of(table.ids)
    if len(missing) == len(table):
        raise DataError(
            f"{file} has no map of any clip of {data_set.module.root}: its ids are like "
            f"{ready.ids[0]}, and those of the set like {table.ids[0]}"
        )
    if missing and not allow_missing:
        raise DataError(
            f"{file} has no map of {len(missing)} of {len(table)} clips: {some(missing)}; make "
            "these maps, or give --allow_missing to leave the clips out; a run that needs their "
            "targets stops"
        )
    chosen = np.flatnonzero(rows >= 0)
    table = table.take(chosen)
    recipe = _recipe(
        data_set.name,
        table,
        shard_clips,
        ready.teacher,
        ready.fingerprint,
        ready.extent,
        ready.shape,
        "",
    )
    left_out = [LeftOut(name, f"no map in {file.name}") for name in missing]
    return table, ReadyMapSource(ready, rows[chosen]), recipe, left_out


def _from_teacher(
    data_set: DataSet,
    table: ClipTable,
    spec: Any,
    allow_missing: bool,
    batch_size: int,
    workers: int | None,
    device_name: str | None,
    shard_clips: int,
) -> Prepared:
    import torch

    from peas.data.workers import default_workers
    from peas.teachers.target_writer import TeacherMaps, describe_input, teacher_samples

    module = data_set.module
    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    teacher = _teacher(spec).to(device)
    source = TeacherMaps(
        teacher,
        table,
        samples=teacher_samples(module.frames, teacher.rate),
        device=device,
        batch_size=batch_size,
        workers=default_workers() if workers is None else workers,
        allow_missing=allow_missing,
    )
    recipe = _recipe(
        data_set.name,
        table,
        shard_clips,
        teacher.name,
        teacher.fingerprint,
        teacher.extent,
        source.shape,
        describe_input(module, teacher.rate),
    )
    return table, source, recipe, []


def _teacher(spec: Any) -> Teacher:
    """The teacher of a class and its arguments.

    Raises:
        ConfigError: The class refuses an argument.
    """
    from jsonargparse import ArgumentParser

    from peas.cli.errors import cause
    from peas.teachers import Teacher

    maker = ArgumentParser(exit_on_error=False)
    maker.add_subclass_arguments(Teacher, "teacher", required=True)
    try:
        teacher = maker.instantiate_classes(maker.parse_object({"teacher": spec})).teacher
    except ValueError as error:
        # The parser wraps what a constructor raised, and keeps its text only.
        raise ConfigError(f"--teacher: {cause(str(error))}") from error
    assert isinstance(teacher, Teacher)
    return teacher


def _recipe(
    set_name: str,
    table: ClipTable,
    shard_clips: int,
    teacher: str,
    fingerprint: str,
    extent: Extent,
    shape: tuple[int, int, int],
    sound: str,
) -> TargetSettings:
    from peas.teachers.cache import TargetSettings
    from peas.teachers.target_writer import ids_sum

    return TargetSettings(
        teacher=teacher,
        fingerprint=fingerprint,
        first_centre=extent.first_centre,
        step=extent.step,
        freq_edges=list(extent.freq_edges),
        shape=list(shape),
        sound=sound,
        set=set_name,
        clips=len(table),
        ids=ids_sum(table.ids),
        shard_clips=shard_clips,
    )


def summary(out: Path, manifest: Manifest) -> str:
    """Content of the cache, for the user.

    Args:
        out: The folder.
        manifest: Its manifest.
    """
    recipe = manifest.settings
    unread = sum(len(shard.left_out) for shard in manifest.shards if shard is not None)
    size = sum(stored.bytes for stored in manifest.files)
    rows, columns, width = recipe.shape
    lines = [
        f"{out}: maps of {recipe.clips - unread:,} clips by {recipe.teacher}, {size / 1e6:,.1f} MB "
        f"in {len(manifest.shards)} shards",
        f"  a map: {rows} rows x {columns} columns x {width} features; fingerprint "
        f"{recipe.fingerprint}",
    ]
    if manifest.left_out:
        names = [clip.id for clip in manifest.left_out]
        lines.append(
            f"  {len(names):,} clips have no map: {some(names)} (all in manifest.json); a run that "
            "needs them stops"
        )
    return "\n".join(lines)
