"""`peas data targets SET ROOT --out DIR`: a teacher's maps of every clip, made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peas.cli.data.bar import Bar
from peas.cli.data.sets import SetParser
from peas.data.module import Split
from peas.errors import ConfigError, DataError, say
from peas.utils.text import some

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from peas.data.clips import ClipTable
    from peas.data.module import ClipDataModule
    from peas.data.shards import LeftOut
    from peas.teachers import Teacher
    from peas.teachers.cache import Manifest, TargetSettings
    from peas.teachers.grid import Extent
    from peas.teachers.target_writer import MapSource

ABOUT = (
    "Run a teacher over every clip of a set, or take ready maps, and keep them as float16 for "
    "pretraining. Broken off, the same command goes on where it stopped; on a finished folder it "
    "compares checksums and makes again what is damaged."
)
SHARD_CLIPS = 4096


def parser(argv: list[str]) -> SetParser:
    """Arguments of the command.

    Args:
        argv: The command line after `peas data targets`.
    """
    from peas import teachers as clap

    made = SetParser("targets", ABOUT, argv)
    add = made.parser.add_argument
    if any(word.startswith("--teacher") or word in ("-h", "--help") for word in argv):
        # A class is known by its name alone once it is imported.
        for name in clap.__all__:
            getattr(clap, name)
    made.parser.add_subclass_arguments(
        clap.Teacher,
        "teacher",
        required=False,
        help="a teacher's class, such as LaionClapTeacher with --teacher.checkpoint FILE",
    )
    add("--from", metavar="NPZ", type=str | None, help="ready maps: an npz of ids and one array")
    add("--extent", metavar="JSON", type=str | None, help="where the cells of ready maps lie")
    add("--key", type=str | None, help="name of the ready maps' array, if there are several")
    add("--out", metavar="DIR", type=str, required=True, help="folder of the cache: new or empty")
    add("--only", type=Split | None, help="the clips of one split; default: every clip")
    add(
        "--allow-missing",
        "--allow_missing",
        action="store_true",
        help="leave out clips without a ready map, or that cannot be read, and list them",
    )
    add("--batch-size", "--batch_size", type=int, default=8, help="clips at once (default 8)")
    add("--workers", type=int | None, help="processes that read (default one a core; 0 = this one)")
    add("--device", type=str | None, help="default: cuda where there is one, else cpu")
    add(
        "--shard-clips",
        "--shard_clips",
        type=int,
        default=SHARD_CLIPS,
        help=f"clips of a file (default {SHARD_CLIPS})",
    )
    return made


def main(argv: list[str]) -> None:
    """Runs the command.

    Args:
        argv: The command line after `peas data targets`.

    Raises:
        ConfigError: An option is out of its range, or contradicts another one.
        PeasError: There is no map of a clip, or the cache cannot be written; see
            `peas.teachers.target_writer.write_targets`.
    """
    made = parser(argv)
    options, module = made.parse()
    _check(options)
    from peas.teachers.target_writer import sorted_ids, write_targets

    out = Path(options.out).expanduser()
    table = module.clips(options.only) if options.only else module.inventory().table
    if not len(table):
        raise DataError(f"{module.root}: there is no clip to make a target of")
    table = table.take(sorted_ids(table.ids))
    prepare = _from_file if options["from"] is not None else _from_teacher
    table, source, recipe, left_out = prepare(options, module, table)
    with Bar() as bar:
        show = bar.of(options.set)
        manifest = write_targets(
            out,
            recipe,
            table.ids,
            source,
            left_out=left_out,
            allow_missing=options.allow_missing,
            progress=lambda done, total: show("targets", done, total),
        )
    say(summary(out, manifest))


def _check(options: Namespace) -> None:
    given = [options.teacher is not None, options["from"] is not None]
    if sum(given) != 1:
        raise ConfigError("give either --teacher, or --from and --extent")
    if (options["from"] is None) != (options.extent is None):
        raise ConfigError("--from and --extent go together: give both, or --teacher alone")
    if options.key is not None and options["from"] is None:
        raise ConfigError("--key names the array of --from: give both, or neither")
    for name, value in (
        ("--batch-size", options.batch_size),
        ("--shard-clips", options.shard_clips),
    ):
        if value < 1:
            raise ConfigError(f"{name} is {value}: give 1 or more")


Prepared = tuple["ClipTable", "MapSource", "TargetSettings", list["LeftOut"]]
"""Clips that get a map, where the maps come from, what is written, and clips without a map."""


def _from_file(options: Namespace, module: ClipDataModule, table: ClipTable) -> Prepared:
    """Ready maps."""
    import numpy as np

    from peas.data.shards import LeftOut
    from peas.teachers.ready_maps import ReadyMapSource, read_ready

    file = Path(options["from"]).expanduser()
    ready = read_ready(file, Path(options.extent).expanduser(), options.key)
    rows, missing = ready.of(table.ids)
    if len(missing) == len(table):
        raise DataError(
            f"{file} has no map of any clip of {module.root}: its ids are like {ready.ids[0]}, "
            f"and those of the set like {table.ids[0]}"
        )
    if missing and not options.allow_missing:
        raise DataError(
            f"{file} has no map of {len(missing)} of {len(table)} clips: {some(missing)}; make "
            "these maps, or give --allow-missing to leave the clips out, on which a run that "
            "needs their targets stops"
        )
    chosen = np.flatnonzero(rows >= 0)
    table = table.take(chosen)
    recipe = _recipe(
        options, table, ready.teacher, ready.fingerprint, ready.extent, ready.shape, ""
    )
    left_out = [LeftOut(name, f"no map in {file.name}") for name in missing]
    return table, ReadyMapSource(ready, rows[chosen]), recipe, left_out


def _from_teacher(options: Namespace, module: ClipDataModule, table: ClipTable) -> Prepared:
    """A teacher that listens to the clips."""
    import torch

    from peas.data.workers import default_workers
    from peas.teachers.target_writer import TeacherMaps, describe_input, teacher_samples

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    teacher = _teacher(options.teacher).to(device)
    source = TeacherMaps(
        teacher,
        table,
        samples=teacher_samples(module.frames, teacher.rate),
        device=device,
        batch_size=options.batch_size,
        workers=default_workers() if options.workers is None else options.workers,
        allow_missing=options.allow_missing,
    )
    recipe = _recipe(
        options,
        table,
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
        # The parser wraps whatever a constructor raised, and keeps its text only.
        raise ConfigError(f"--teacher: {cause(str(error))}") from error
    assert isinstance(teacher, Teacher)
    return teacher


def _recipe(
    options: Namespace,
    table: ClipTable,
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
        set=options.set,
        clips=len(table),
        ids=ids_sum(table.ids),
        shard_clips=options.shard_clips,
    )


def summary(out: Path, manifest: Manifest) -> str:
    """What the cache holds, for the user.

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
