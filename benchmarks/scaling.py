"""What an AS-2M pretraining takes on 1, 8 and 64 GPUs: counted, measured here, and computed.

Counted, on the models themselves: arithmetic of a step (forward and backward, by PyTorch's
counter), parameters, what the backward pass holds, bytes that an all-reduce sends, bytes of a
checkpoint. Measured here: decoding a clip. All else is arithmetic with the rates given as
arguments, none of which was measured by this script: a GPU's achieved rate, and the network.
"""

import argparse
import io
import statistics
import warnings
from dataclasses import dataclass

import numpy as np
import soundfile
import timing
import torch
from torch.utils.flop_counter import FlopCounterMode

from peas.audio.decode import load
from peas.masking.patches import random_patches
from peas.models import AudioMAE
from peas.models.patches import visible_indices
from peas.teachers import TransformersClapTeacher

CLIPS = 1_912_024
"""AudioMAE's AS-2M as its paper counts it."""
EPOCHS = 32
PUBLISHED = (
    "Published: AudioMAE 64 V100 for 36 h, 2,304 GPU-hours (32 epochs); EAT 4 RTX 3090, 10 epochs, "
    "some 230 GPU-hours. Their cards and batches differ."
)
SYSTEMS = {
    "AudioMAE": (0.8, 16, False),
    "MAM-CLAP": (0.2, 1, True),
}
"""Mask ratio, blocks of the decoder, and whether a teacher runs where its maps are not cached.
SupMAM's branch and SupMAM-CLAP's heads add less than a hundredth."""


@dataclass
class Counted:
    """Of one clip of a step; bytes of the model."""

    flops: float
    parameters: int
    held: int
    """Bytes of float32 that the backward pass needs."""

    @property
    def gradient_bytes(self) -> int:
        """What every process adds to the sum, in float32."""
        return 4 * self.parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and AdamW's two moments."""
        return 12 * self.parameters


def count(name: str) -> Counted:
    """Arithmetic of forward and backward of a clip of ten seconds, ViT-B."""
    ratio, depth, _ = SYSTEMS[name]
    model = AudioMAE("base", decoder_depth=depth)
    model.build(1024, 128, needs=("decoder", "pixels"))
    log_mel = torch.randn(1, 1024, 128)
    visible = visible_indices(random_patches(torch.rand(1, 512), int(512 * (1 - ratio))))
    held: dict[int, int] = {}

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {q.untyped_storage().data_ptr() for q in [*model.parameters(), *model.buffers()]}
    saved = torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor)
    with saved, FlopCounterMode(display=False) as counter:
        patches = model.encoder.patches(log_mel)
        tokens = model.encoder.norm(model.encoder(patches, visible))
        assert model.decoder is not None
        model.decoder.pred(model.decoder(tokens, visible, patches.shape[1])).sum().backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    activations = sum(size for place, size in held.items() if place not in own)
    return Counted(counter.get_total_flops(), trained, activations)


def teacher_flops() -> float:
    """Arithmetic of HTSAT-tiny on a clip of ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = TransformersClapTeacher(checkpoint=None)
        sound = torch.zeros(1, 480_000)
        with FlopCounterMode(display=False) as counter:
            teacher(sound, torch.tensor([480_000]))
    return float(counter.get_total_flops())


def decoding(repeats: int) -> float:
    """Seconds of one core to decode a FLAC clip of ten seconds at 16 kHz."""
    rng = np.random.default_rng(0)
    noise = np.cumsum(rng.standard_normal(160_000)) % 2 - 1
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * noise, 16_000, format="FLAC")
    content = buffer.getvalue()
    return statistics.median(
        timing.seconds_of(lambda: load(content, 16_000), clock="cpu") for _ in range(repeats)
    )


def main() -> None:
    """Count, measure, compute, and print the tables."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--tflops", type=float, default=100, help="achieved by a GPU (default 100)")
    p.add_argument("--node", type=int, default=8, help="GPUs of a node (default 8)")
    p.add_argument("--inside", type=float, default=200, help="GB/s in a node (default 200)")
    p.add_argument("--between", type=float, default=25, help="GB/s of a node (default 25)")
    p.add_argument("--batch", type=int, default=64, help="clips of a GPU (default 64)")
    p.add_argument("--repeats", type=int, default=20)
    options = p.parse_args()
    torch.set_num_threads(1)
    core = decoding(options.repeats)
    print(timing.heading("cpu"))
    print(f"Decoding a FLAC clip of 10 s: {1000 * core:.2f} ms of a core, measured.\n")
    print(
        "| ViT-B | TFLOP a clip | held for backward, float32 (MB a clip) | trained | "
        "an all-reduce (MB) | a checkpoint (GB) | memory of a GPU, bf16 (GB) |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    counted = {name: count(name) for name in SYSTEMS}
    for name, one in counted.items():
        print(
            f"| {name} | {one.flops / 1e12:.3f} | {one.held / 1e6:.0f} | "
            f"{one.parameters / 1e6:.1f} M | {one.gradient_bytes / 1e6:.0f} | "
            f"{one.checkpoint_bytes / 1e9:.2f} | "
            f"{(options.batch * one.held / 2 + 16 * one.parameters) / 1e9:.0f} |"
        )
    live = teacher_flops()
    print(f"\nA live teacher (HTSAT-tiny) adds {live / 1e12:.3f} TFLOP a clip.\n")
    print(
        f"Computed for {CLIPS:,} clips x {EPOCHS} epochs, {options.batch} clips a GPU, "
        f"{options.tflops:g} TFLOP/s, {options.inside:g} GB/s in a node of {options.node} and "
        f"{options.between:g} GB/s between nodes:\n"
    )
    print(
        "| system | GPUs | global batch | step (ms) | of it all-reduce, if not hidden | "
        "cores that decode, a GPU | hours | GPU-hours |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, one in counted.items():
        rows = [(name, one.flops)]
        if SYSTEMS[name][2]:
            rows.append((f"{name}, live teacher", one.flops + live))
        for label, flops in rows:
            for gpus in (1, 8, 64):
                step = options.batch * flops / (options.tflops * 1e12)
                share = 2 * (gpus - 1) / gpus * one.gradient_bytes / 1e9
                # A node's GPUs share its way out.
                rate = options.inside if gpus <= options.node else options.between
                send = share / rate
                # Gradients are sent while the backward pass, two thirds of a step, goes on.
                step += max(0.0, send - 2 / 3 * step)
                hours = CLIPS * EPOCHS / (options.batch * gpus) * step / 3600
                print(
                    f"| {label} | {gpus} | {options.batch * gpus} | {1000 * step:.0f} | "
                    f"{1000 * send:.1f} ms | {options.batch / step * core:.1f} | {hours:.1f} | "
                    f"{hours * gpus:.0f} |"
                )
    print(f"\n{PUBLISHED}")


if __name__ == "__main__":
    main()
