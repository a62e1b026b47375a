"""`peas probe`: probes on stores of embeddings, and one table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peas.errors import ConfigError, UsageError, say

if TYPE_CHECKING:
    from torch import Tensor

    from peas.evaluation.probes import ProbeSet, Result
    from peas.inference.store import EmbeddingStore

ProbeName = Literal["knn", "knn_xares", "linear", "weighted", "attentive", "prototypes"]


def probe(
    stores: list[str],
    *,
    probes: list[ProbeName] | None = None,
    seeds: str = "0-2",
    split: Literal["folds", "test", "validation"] | None = None,
    layer: int | None = None,
    out: str | None = None,
) -> None:
    """Score probes on stores of embeddings, and write one table.

    A store is what `peas embed` wrote; nothing is embedded again. Each setting of a probe is chosen
    on training folds, or on the validation split, never on the clips that are scored. A store is
    refused if the training set of its checkpoint shares recordings with it.

    Args:
        stores: Stores; NAME=STORE gives a row its name, and several of one name, such as those of
            several pretraining seeds, are averaged. Without NAME it is the folder's.
        probes: Names of probes; default knn and linear.
        seeds: Such as 0-2, of probes that use random numbers.
        split: What is scored: each of the `folds` by the others, or `test` or `validation` by the
            training clips; default folds if the store has them, else test.
        layer: Layer of knn, linear and attentive; default the last one of the store.
        out: Folder for probe.md, probe.csv and probe.json, besides printing; none of these may be
            there.

    Raises:
        PeasError: A store cannot be read or probed.
    """
    from peas.cli.kfold import numbers
    from peas.cli.results import markdown, write_table
    from peas.evaluation.probes import PROBES, evaluate
    from peas.inference.leaks import require_disjoint
    from peas.inference.store import EmbeddingStore

    seed_list = numbers(seeds, "--seeds")
    names = list(dict.fromkeys(probes or ("knn", "linear")))
    opened: dict[str, list[EmbeddingStore]] = {}
    for name, path in row_names(stores):
        opened.setdefault(name, []).append(EmbeddingStore.open(path))
    origins: dict[str, str] = {}
    for store in (store for group in opened.values() for store in group):
        if checkpoint := store.settings.get("checkpoint"):
            origins[str(store.folder)] = require_disjoint(checkpoint, store.recording or ())
    sets = {name: [probe_set(store, name) for store in group] for name, group in opened.items()}
    built = {name: PROBES[name](layer) for name in names}
    for group in sets.values():
        for data in group:
            for one in built.values():
                # Before the first is trained.
                one.check(data)
    folder = None if out is None else new_tables(Path(out).expanduser())
    rows, content = [], []
    start = time.monotonic()
    for name, group in sets.items():
        for kind, one in built.items():
            result = evaluate(one, group, seeds=seed_list, split=split)
            rows.append(row(name, kind, result))
            content.append({"store": name, "probe": kind, **asdict(result)})
            done = f"{len(rows)} of {len(sets) * len(built)}, {time.monotonic() - start:.0f} s"
            say(f"{name}, {kind}: {result.metric} {result.value:.1%} ({done})", sys.stderr)
    note = "\n".join(f"{store}: trained on {origin}" for store, origin in origins.items())
    if folder is None:
        say(markdown(rows, note))
        return
    say(write_table(folder / "probe", rows, note))
    info = {"rows": content, "trained_on": origins, "seeds": seed_list}
    (folder / "probe.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def named(text: str) -> tuple[str, str]:
    """Name of the row, empty if none is given, and path of `NAME=STORE` or `STORE`.

    Raises:
        UsageError: One of them is empty.
    """
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        name, path = "", text
    if not path or (equals and text.startswith("=")):
        raise UsageError(f"{text!r}: give a store as NAME=STORE or STORE")
    return name, path


def row_names(stores: Sequence[str]) -> list[tuple[str, str]]:
    """Name of the row and path of each store: only a name that was given joins several.

    Without one it is the folder's, with as many folders above it as tell it from the others.

    Args:
        stores: `NAME=STORE` or `STORE`.

    Raises:
        UsageError: A name or path is empty, or a store without a name is there twice.
    """
    pairs = [named(text) for text in stores]
    given = {name for name, _ in pairs}
    paths = [Path(path).expanduser().resolve() for name, path in pairs if not name]
    if repeated := next((path for path in paths if paths.count(path) > 1), None):
        raise UsageError(f"{repeated} is given twice: give it once")

    def name_of(path: Path) -> str:
        for count in range(1, len(path.parts)):
            name = "/".join(path.parts[-count:])
            same = sum(other.parts[-count:] == path.parts[-count:] for other in paths)
            if same == 1 and name not in given:
                return name
        return str(path)

    return [(name or name_of(Path(path).expanduser().resolve()), path) for name, path in pairs]


def new_tables(folder: Path) -> Path:
    """A folder that has no tables yet; it is made.

    Raises:
        ConfigError: It has some, or cannot be made.
    """
    for suffix in ("md", "csv", "json"):
        if (file := folder / f"probe.{suffix}").exists():
            raise ConfigError(f"--out: {file} is there already: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out: {folder} cannot be made ({error.strerror}): name another folder"
        ) from None
    return folder


def groups_of(store: EmbeddingStore) -> list[str]:
    """Group of each clip: clips that share a recording or a speaker, even through others.

    Empty names are unknown ones; a clip with neither is a group of its own.

    Args:
        store: The store.
    """
    above: dict[str, str] = {}

    def top(key: str) -> str:
        above.setdefault(key, key)
        while above[key] != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    for kind, names in (("recording", store.recording), ("speaker", store.speaker)):
        for clip, name in zip(store.ids, names or (), strict=names is not None):
            if name:
                above[top(f"clip {clip}")] = top(f"{kind} {name}")
    return [top(f"clip {clip}") for clip in store.ids]


def probe_set(store: EmbeddingStore, name: str) -> ProbeSet:
    """What probes need of a store.

    Args:
        store: The store.
        name: Of the row.

    Raises:
        DataError: It has no classes, or embeddings that are non-finite.
    """
    import torch

    from peas.evaluation.probes import ProbeSet

    embeddings = torch.from_numpy(store.embeddings().copy())
    if embeddings.ndim == 2:
        embeddings = embeddings[None]
    return ProbeSet(
        name,
        ids=store.ids,
        embeddings=embeddings,
        layers=store.layers,
        targets=torch.from_numpy(store.targets),
        multi_label=store.multi_label,
        split=store.split,
        clusters=groups_of(store),
        tokens=tokens(store, embeddings.shape[2]) if store.has_frames else None,
    )


def tokens(store: EmbeddingStore, width: int) -> Callable[[int, Sequence[int]], Tensor]:
    """Tokens of a store's clips for `ProbeSet`: one a patch where bands are concatenated.

    Args:
        store: With frames.
        width: Of its embeddings.
    """
    import torch

    if store.settings.get("pool") == "mean+std":
        width //= 2

    def of_clip(row: int, layers: Sequence[int]) -> Tensor:
        numbers = [store.layers[index] for index in layers]
        frames = [torch.tensor(store.frames(row, number).embeddings) for number in numbers]
        # Of frames whose bands were averaged nothing changes.
        return torch.stack(frames).reshape(len(layers), -1, width)

    return of_clip


def row(name: str, kind: str, result: Result) -> dict[str, str]:
    """A row of the table."""
    value = f"{result.value:.1%}"
    if result.std is not None:
        value += f" ± {result.std:.1%}"
    if result.low is not None and result.high is not None:
        value += f" [{result.low:.1%}, {result.high:.1%}]"
    folds = len(result.partitions) > 1
    return {
        "store": name,
        "probe": kind,
        "metric": result.metric,
        "score [95 %]": value,
        "clips": str(result.clips),
        "classes": str(result.classes),
        "scored": f"{len(result.partitions)} folds" if folds else result.partitions[0],
        "layers": _range(result.layers),
        "seconds": f"{result.seconds:.1f}",
    }


def _range(layers: Sequence[int]) -> str:
    """`0-12` of consecutive layers, else each of them."""
    first, last = layers[0], layers[-1]
    if len(layers) > 2 and list(layers) == list(range(first, last + 1)):
        return f"{first}-{last}"
    return ", ".join(map(str, layers))
