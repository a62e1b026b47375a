"""The model card of an exported folder: what its run's files say, and what must be filled in."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from peas import __version__
from peas.errors import printable
from peas.inference.model import AudioModel

UNKNOWN = "unknown: fill in"
LICENCES = {
    "ESC50": "CC BY-NC 3.0",
    "AudioSet": "clips: those of their YouTube videos; labels: CC BY 4.0",
    "SpeechCommands": "CC BY 4.0",
    "LibriSpeech": "CC BY 4.0",
    "SyntheticSounds": "none: generated",
}
"""Licences of data sets, by the class that reads them."""
SPLITS = {"val": "validation", "test": "test"}
CARD = """\
---
{matter}---

# {title}

{about}

## Use

```python
import peas

model = peas.load("{source}")
{use}
```

Sound of any length and rate: a path, bytes, an array or a list of these.
`peas.inference.AudioModel.from_pretrained` loads the same.

## Model

{model}

## Training

{training}

## Results

{results}

## Limits

{limits}
"""


def card(model: AudioModel, source: str, folder: Path, push: str | None = None) -> str:
    """Text of the card.

    Args:
        model: That is exported.
        source: What it was loaded from; of a run, its folder's files are read.
        folder: Where it goes.
        push: OWNER/NAME on the hub.
    """
    run = _run_folder(Path(source))
    config, environment = _config(run), _json(run, "environment.json")
    encoder = type(model.encoder).__name__
    data = config.get("data") or {}
    data_set = str(data.get("class_path") or "").rpartition(".")[2]
    matter = {
        "license": "unknown",
        "library_name": "peas",
        "pipeline_tag": "audio-classification" if model.labels else "feature-extraction",
        "tags": ["audio", "peas", encoder.lower(), "pytorch_model_hub_mixin"],
    }
    task = (
        f"tells {len(model.labels)} classes of sound apart"
        if model.labels
        else ("turns sound into embeddings")
    )
    use = 'print(model.predict("clip.wav"))' if model.labels else 'print(model.embed("clip.wav"))'
    return CARD.format(
        matter=yaml.safe_dump(matter, sort_keys=False),
        title=_inline(push.rpartition("/")[2] if push else folder.name),
        about=f"{encoder} with its front end, which {task}. By `peas export` of {__version__}.",
        source=f"hf://{push}" if push else "FOLDER",
        use=use,
        model=_table(_model_rows(model)),
        training=_table(
            _training_rows(config, environment, data_set, data.get("init_args") or {}, run)
        ),
        results=_results(run, model.origin.get("epoch")),
        limits=_limits(model, data_set),
    )


def _model_rows(model: AudioModel) -> list[tuple[str, Any]]:
    return [
        ("encoder", json.dumps(model.encoder.spec())),
        ("front end", json.dumps(model.front_end.spec())),
        ("sample rate", f"{model.sample_rate} Hz; other rates are resampled"),
        ("input", f"{model.window_ms / 1000:g} s; longer sound is cut into windows"),
        (
            "embedding",
            f"{model.dim} wide, layers 0 to {model.layers}, one each {model.hop_ms:g} ms",
        ),
        ("labels", f"{len(model.labels)}, in `labels.txt`" if model.labels else "none"),
        ("scores", model.activation if model.labels else "none"),
        ("licence of the weights", UNKNOWN),
    ]


def _training_rows(
    config: dict[str, Any],
    environment: dict[str, Any],
    data_set: str,
    data: dict[str, Any],
    run: Path | None,
) -> list[tuple[str, Any]]:
    task = config.get("model") or {}
    settings = task.get("init_args") or {}
    protocol = {
        key: value
        for key, value in data.items()
        if value is not None and key in ("fold", "task", "subset", "subsets", "train", "test_set")
    }
    trainer = config.get("trainer") or {}
    return [
        ("data set", data_set or UNKNOWN),
        ("licence of the data", LICENCES.get(data_set, UNKNOWN)),
        ("protocol", json.dumps(protocol) if protocol else UNKNOWN),
        *_clip_rows(run),
        ("task", str(task.get("class_path") or UNKNOWN)),
        ("begun with", str(settings.get("pretrained") or ("nothing" if task else UNKNOWN))),
        ("masking", _class(config.get("masking")) if config else UNKNOWN),
        ("epochs", trainer.get("max_epochs", UNKNOWN)),
        ("seed", config.get("seed_everything", UNKNOWN)),
        ("config", str(environment.get("config_hash") or UNKNOWN)),
        ("commit", str(environment.get("commit") or UNKNOWN)),
    ]


def _class(part: Any) -> str:
    if isinstance(part, dict):
        return f"{part.get('class_path')} {json.dumps(part.get('init_args') or {})}"
    return "none" if part is None else str(part)


def _clip_rows(run: Path | None) -> list[tuple[str, Any]]:
    """Numbers of clips, where the run's files have them."""
    rows: list[tuple[str, Any]] = []
    if run is not None and (run / "labels.csv").is_file():
        with (run / "labels.csv").open(newline="", encoding="utf-8") as file:
            counts = [int(row["training_clips"]) for row in csv.DictReader(file)]
        rows.append(("training clips, summed over classes", sum(counts)))
    for name, split in SPLITS.items():
        if run is None:
            continue
        for scores in sorted((run / "logits").glob(f"{name}*.npz"))[:1]:
            with np.load(scores, allow_pickle=False) as stored:
                rows.append((f"{split} clips", len(set(stored["ids"].tolist()))))
    return rows or [("clips", UNKNOWN)]


def _results(run: Path | None, epoch: int | None) -> str:
    """Metrics that the run's logs have of the epoch that is exported."""
    found: dict[str, str] = {}
    logs = () if run is None else run.glob("logs/version_*/metrics.csv")
    for log in sorted(logs, key=lambda path: (len(path.parent.name), path.parent.name)):
        with log.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("epoch") != str(epoch):
                    continue
                for key, value in row.items():
                    if key and key.startswith(tuple(SPLITS)) and value and _finite(value):
                        found[key] = value
    if not found:
        return f"None of this checkpoint were found in the logs of its run: {UNKNOWN}."
    rows = "\n".join(f"| {_cell(key)} | {float(found[key]):.4g} |" for key in sorted(found))
    return (
        f"| metric | value |\n|---|---|\n{rows}\n\nOf epoch {int(epoch or 0) + 1}. The best "
        "epoch is chosen on `val`; where a protocol has no other split, `test` is the same clips."
    )


def _limits(model: AudioModel, data_set: str) -> str:
    scores = (
        "Scores are not calibrated, and a sound of no known class gets one all the same.\n- "
        if model.labels
        else ""
    )
    return (
        f"- {scores}It was trained on {data_set or 'only its data set'}: on other recordings, "
        f"devices or languages it may do worse, and nobody has measured it here.\n"
        f"- Sound is mixed to one channel at {model.sample_rate} Hz: nothing above "
        f"{model.sample_rate // 2} Hz reaches the model.\n"
        f"- The licence of data and weights is for whoever publishes this to fill in."
    )


def _run_folder(source: Path) -> Path | None:
    """Folder with the files of the run that a checkpoint is of."""
    for folder in (source, source.parent, source.parent.parent):
        if folder.is_dir() and (folder / "config.yaml").is_file():
            return folder
    return None


def _config(run: Path | None) -> dict[str, Any]:
    if run is None:
        return {}
    try:
        found = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _json(run: Path | None, name: str) -> dict[str, Any]:
    try:
        found = json.loads((run / name).read_text(encoding="utf-8")) if run else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _finite(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _table(rows: list[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {_cell(v)} |" for k, v in rows)])


def _cell(value: Any) -> str:
    return _inline(str(value)).replace("|", "\\|")


def _inline(text: str) -> str:
    return printable(text).replace("<", "&lt;")
