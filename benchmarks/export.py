"""Speed of an exported ONNX file in onnxruntime against the model in PyTorch, on a CPU.

Both score the same batch of waveforms with the same number of threads, front end included, and take
turns in one process. The table also shows how far their scores differ.
"""

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import timing
import torch

from peas.audio import KaldiLogMel
from peas.inference import AudioModel
from peas.inference.export import OPSET, export_onnx
from peas.models import SSAST, AudioMAE
from peas.models.encoder import Encoder

ENCODERS: dict[str, type[Encoder]] = {"AudioMAE": AudioMAE, "SSAST": SSAST}
CLASSES = 50


def model_of(encoder: str, size: str, frames: int) -> AudioModel:
    """A model with fresh weights, whose classifier tells noises apart."""
    torch.manual_seed(0)
    front_end = KaldiLogMel(frames, -6.6, 5.4)
    labels = [f"class {number}" for number in range(CLASSES)]
    model = AudioModel(ENCODERS[encoder](size), front_end, labels)
    torch.nn.init.normal_(model.encoder.head.weight, std=0.02)
    return model


def session_of(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session with as many threads as PyTorch has, which do not spin between its calls."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", choices=tuple(ENCODERS), default="AudioMAE")
    parser.add_argument("--size", choices=("mini", "tiny", "small", "base"), default="base")
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--opset", type=int, default=OPSET)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--clock", choices=tuple(timing.CLOCKS), default="cpu", help="see timing.py"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = model_of(options.encoder, options.size, options.frames)
    waveform = 0.1 * torch.randn(options.batch, model.front_end.samples())
    samples = waveform.numpy()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "model.onnx"
        with torch.inference_mode(False):
            export_onnx(model, file, opset=options.opset)
        session = session_of(file, options.threads)
        scores = torch.from_numpy(session.run(None, {"waveform": samples})[0])
        difference = (scores - model(waveform)).abs().max()
        values = timing.interleaved(
            {
                "torch": lambda: timing.seconds_of(lambda: model(waveform), clock=options.clock),
                "onnx": lambda: timing.seconds_of(
                    lambda: session.run(None, {"waveform": samples}), clock=options.clock
                ),
            },
            options.repeats,
        )
    print(timing.heading("cpu"))
    print(
        f"{options.encoder} {options.size}, {options.batch} clips of "
        f"{model.window_ms / 1000:.1f} s, {options.clock} seconds, "
        f"onnxruntime {onnxruntime.__version__}\n"
    )
    ratios = timing.quotients(values["torch"], values["onnx"])
    rows = [
        ("PyTorch (s)", values["torch"], 3),
        ("ONNX (s)", values["onnx"], 3),
        ("PyTorch / ONNX (goal: 1.0 or more)", ratios, 2),
    ]
    print(timing.table(rows))
    print(f"\nLargest difference of the scores: {difference:.2g}")


if __name__ == "__main__":
    main()
