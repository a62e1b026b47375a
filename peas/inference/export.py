"""A model as a file for other tools: a folder for the hub, ONNX, `torch.export`.

Each is run beside the model before it gets its name, so that a file that is there is right.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from peas import __version__
from peas.errors import ConfigError, PeasError, UsageError
from peas.inference.graph import ModelGraph, Output
from peas.inference.loading import load
from peas.inference.model import AudioModel
from peas.models.weights.exported import CONFIG, FORMAT, WEIGHTS
from peas.models.weights.writing import to_disk
from peas.utils.files import checksum

TOLERANCES = {"hf": 0.0, "onnx": 1e-4, "torch": 1e-5}
"""Largest difference from the model on a random waveform."""
OPSET, LEAST_OPSET = 23, 18
"""Default, the first one with attention as one operation; least of PyTorch's exporter."""
LABELS, CARD = "labels.txt", "README.md"
Run = Callable[[Tensor], Tensor]


def export_folder(model: AudioModel, out: Path, card: str, modules: Sequence[str] = ()) -> float:
    """Writes what `peas.load` and `huggingface_hub` read.

    Args:
        model: On the CPU; a pixel probe, which serves the masks of a training, is taken from it.
        out: The folder.
        card: Text of the model card.
        modules: As in `peas.load`.

    Returns:
        Largest difference of the loaded model's outputs.

    Raises:
        PeasError: It cannot be written, or gives other numbers.
    """
    model.encoder.pixel_probe = None
    with _partial(out) as folder:
        folder.mkdir()
        (folder / CARD).write_text(card, encoding="utf-8")
        if model.labels:
            (folder / LABELS).write_text("\n".join(model.labels) + "\n", encoding="utf-8")
        model.save_pretrained(folder)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        digest = checksum(folder / WEIGHTS)
        config["peas"] = {"version": __version__, "format": FORMAT, "checksum": digest}
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        for file in folder.iterdir():
            # safetensors writes for its owner alone.
            file.chmod((folder / CARD).stat().st_mode)
            to_disk(file)
        again = load(folder, "cpu", modules=modules)
        clips = list(_clips(model))
        difference = _verify(out, "hf", "embeddings", model, again.embed, clips)
        if model.labels:
            scored = _verify(out, "hf", "scores", model, partial(again.scores, long="first"), clips)
            difference = max(difference, scored)
        return difference


def export_onnx(
    model: AudioModel, out: Path, *, output: Output = "scores", opset: int = OPSET
) -> float:
    """Writes an ONNX file: `waveform` `[B, S]` to `scores` `[B, C]` or `embeddings` `[B, D]`.

    Args:
        model: On the CPU.
        out: The file.
        output: What it gives.
        opset: Version of the operators.

    Returns:
        Largest difference in onnxruntime on the CPU.

    Raises:
        PeasError: Packages are missing, the model cannot be traced, or the file gives other
            numbers.
    """
    if opset < LEAST_OPSET:
        raise UsageError(
            f"`--opset` is {opset}, which is too old: give {LEAST_OPSET} or more, such as {OPSET}"
        )
    onnxruntime = _onnxruntime()
    # The layout of the fused kernels' output is PyTorch's own, and a view of it no runtime's.
    with sdpa_kernel(SDPBackend.MATH):
        program = _traced(ModelGraph(model, output, fft=False))
    with _partial(out) as file:
        with _failing(f"cannot be written with opset {opset}"), sdpa_kernel(SDPBackend.MATH):
            written = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=opset,
                input_names=["waveform"],
                output_names=[output],
                verbose=False,
            )
            assert written is not None
            written.model.metadata_props.update(
                {key: _text(value) for key, value in _metadata(model, output).items()}
            )
            written.save(file, external_data=False)
        with _failing("cannot be run by onnxruntime"):
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

            def run(waveform: Tensor) -> Tensor:
                return torch.from_numpy(session.run(None, {"waveform": waveform.numpy()})[0])

            difference = _verify(out, "onnx", output, model, run, _clips(model))
        to_disk(file)
    return difference


def export_torch(model: AudioModel, out: Path, *, output: Output = "scores") -> float:
    """Writes a program of `torch.export`, with the output of `export_onnx`.

    Args:
        model: On the CPU.
        out: The file, `.pt2`.
        output: What it gives.

    Returns:
        Largest difference.

    Raises:
        PeasError: The model cannot be traced, or the file gives other numbers.
    """
    program = _traced(ModelGraph(model, output, fft=True))
    with _partial(out) as file:
        with _failing("cannot be written"):
            metadata = {"peas.json": json.dumps(_metadata(model, output), ensure_ascii=False)}
            torch.export.save(program, file, extra_files=metadata)
            run = torch.export.load(file).module()
        difference = _verify(out, "torch", output, model, run, _clips(model))
        to_disk(file)
    return difference


def new_path(out: str | Path) -> Path:
    """A path where there is nothing.

    Raises:
        PeasError: There is something.
    """
    if os.path.lexists(out):
        raise PeasError(f"{out} exists: choose another --out, nothing is overwritten")
    return Path(out)


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Another name beside `out`, which becomes `out` in the end; on an error nothing remains."""
    unnamed = new_path(out).with_name(f".partial.{os.getpid()}.{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield unnamed
        new_path(out)
        unnamed.rename(out)
    except OSError as error:
        raise PeasError(
            f"{out}: cannot be written ({error.strerror or error}); make room, or choose another "
            "--out"
        ) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(unnamed) if unnamed.is_dir() else unnamed.unlink()


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """An exporter may raise anything; it and its warnings are of no use to a user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (PeasError, OSError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"the model {what} ({type(error).__name__}: {lines[0][:300]}): give another --opset "
            "or --format; an encoder of your own must not turn a tensor, or its length by `len`, "
            "into a Python number"
        ) from error


def _traced(graph: ModelGraph) -> torch.export.ExportedProgram:
    """The graph for any batch and any length."""
    front_end = graph.front_end
    waveform = torch.zeros(2, front_end.width + (front_end.frames - 1) * front_end.shift)
    dynamic = {"waveform": {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples")}}
    with _failing("cannot be traced"), torch.no_grad():
        return torch.export.export(graph.eval(), (waveform,), dynamic_shapes=dynamic)


def _onnxruntime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise PeasError(
            f"--format onnx needs onnx, onnxruntime and onnxscript ({error}): "
            "`pip install 'peas[onnx]'`"
        ) from error
    return onnxruntime


def _metadata(model: AudioModel, output: Output) -> dict[str, Any]:
    """What a file says of itself."""
    return {
        "peas": __version__,
        "output": output,
        "labels": model.labels,
        "scores": model.activation,
        "sample_rate": model.sample_rate,
        "window_samples": model.front_end.samples(),
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _clips(model: AudioModel) -> Iterator[Tensor]:
    """Noise as long as the window, shorter, and longer."""
    generator = torch.Generator().manual_seed(0)
    window = model.front_end.samples()
    for clips, samples in ((2, window), (1, window // 2 + 1), (3, window + window // 3)):
        yield 0.1 * torch.randn(clips, samples, generator=generator)


def _verify(out: Path, kind: str, output: Output, model: AudioModel, run: Run, clips: Any) -> float:
    """Largest difference between a file's outputs and the model's.

    Raises:
        PeasError: It exceeds the tolerance.
    """
    largest = 0.0
    with torch.no_grad():
        for waveform in clips:
            if output == "scores":
                expected = model.scores(waveform, long="first")
            elif waveform.shape[1] <= model.front_end.samples():
                expected = model.embed(waveform)
            else:
                continue
            difference = float((run(waveform) - expected).abs().max())
            # Not `<=`: it may be NaN.
            if not difference <= TOLERANCES[kind]:
                raise PeasError(
                    f"{out}: its {output} differ from the model's by {difference:.2g}, and "
                    f"{TOLERANCES[kind]:g} is allowed; it was not written. Give another --format "
                    "or --opset"
                )
            largest = max(largest, difference)
    return largest
