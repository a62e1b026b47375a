"""Pretraining step of the official AudioMAE code, in a process of its own.

A worker of `mae_pretraining_step.py`, and no script to call: the official model demands timm 0.3.2
with a file of its own in it, and names that newer torch and numpy have removed. They are put in
place here, at run time; the checkout stays as it is. It reads a line a command from its standard
input and answers each with a line of JSON. Nothing of `peas` is imported here, and the step's work
is that of the official `engine_pretrain.py`: same optimiser, groups, loss and order.
"""

import collections.abc
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from peer import serve, worker
from torch import nn


def put_in_place(peer: Path, timm: Path | None) -> None:
    """Let the official modules be imported: removed names, and timm with the official file."""
    six: Any = ModuleType("torch._six")
    six.inf, six.container_abcs = float("inf"), collections.abc
    six.string_classes, six.int_classes = str, int
    sys.modules["torch._six"] = six
    if "float" not in vars(np):
        np.float = float  # type: ignore[attr-defined]
    sys.path.insert(0, str(peer))
    if timm is not None:
        sys.path.insert(0, str(timm))
    import timm.models.layers  # type: ignore[no-redef]

    name = "timm.models.swin_transformer"
    spec = importlib.util.spec_from_file_location(name, peer / "timm_patch" / "swin_transformer.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def build(size: str) -> nn.Module:
    """The official pretraining model with its local decoder of 16 blocks."""
    import models_mae

    torch.manual_seed(0)
    made: nn.Module = getattr(models_mae, f"mae_vit_{size}_patch16")(
        norm_pix_loss=True, in_chans=1, audio_exp=True, img_size=(1024, 128), decoder_mode=1
    )
    return made


def main() -> None:
    """Build, save weights, mask and loss for the comparison, then step whenever asked."""
    options, answers = worker(__doc__)
    put_in_place(options.peer.resolve(), options.peer_timm)
    import timm.optim.optim_factory as optim_factory

    given = torch.load(options.work / "inputs.pt")
    log_mel, ratio = given["log_mel"].unsqueeze(1).to(options.device), given["mask_ratio"]
    model: Any = build(options.size).to(options.device)
    groups = optim_factory.add_weight_decay(model, 1e-4)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    cuda = options.device == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=cuda)

    def loss_of() -> tuple[torch.Tensor, torch.Tensor]:
        # `forward` without its last value, a zero on a CUDA device that a CPU does not have.
        tokens, mask, order, _ = model.forward_encoder(log_mel, ratio)
        drawn, _, _ = model.forward_decoder(tokens, order)
        return model.forward_loss(log_mel, drawn, mask, norm_pix_loss=True), mask

    torch.save({"model": model.state_dict()}, options.work / "peer.pth")
    model.eval()
    with torch.no_grad():
        loss, mask = loss_of()
    torch.save({"loss": loss.cpu(), "hidden": mask.cpu() > 0}, options.work / "loss.pt")
    model.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def step(command: str) -> None:
        half = command == "half"
        # Officially float16 on a GPU; nothing is said of a CPU.
        dtype = torch.float16 if cuda else torch.bfloat16
        with torch.autocast(options.device, dtype) if half else nullcontext():
            loss, _ = loss_of()
        loss.item()
        (scaler.scale(loss) if half else loss).backward()
        if cuda and half:
            # The official scaler measures the norm of all gradients.
            scaler.unscale_(optimizer)
            gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            torch.stack(gradients).norm()
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()

    serve(options, answers, trained, step)


if __name__ == "__main__":
    main()
