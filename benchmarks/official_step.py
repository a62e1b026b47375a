"""Training step of the official SSAST code, in a process of its own.

A worker of `training_step.py`, and no script to call: the official model demands timm 0.4.5, which
cannot be imported beside the timm that `peas` needs. It reads a line a command from its standard
input and answers each with a line of JSON. Nothing of `peas` is imported here, and the loop's work
is that of the official `traintest.py`: same optimiser, groups, loss and order.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from peer import serve, worker
from torch import nn

HEAD = ["mlp_head.0.weight", "mlp_head.0.bias", "mlp_head.1.weight", "mlp_head.1.bias"]


def build(size: str, classes: int, frames: int, work: Path) -> nn.Module:
    """The official fine-tuning model; the pretrained file that it insists on is made first."""
    from ast_models import ASTModel

    torch.manual_seed(0)
    pretraining = ASTModel(input_tdim=1024, model_size=size, fshape=16, tshape=16, fstride=16,
                           tstride=16, pretrain_stage=True)  # fmt: skip
    pretrained = work / "pretrained.pth"
    torch.save(nn.DataParallel(pretraining).state_dict(), pretrained)
    return ASTModel(label_dim=classes, input_tdim=frames, model_size=size, fshape=16, tshape=16,
                    fstride=10, tstride=10, pretrain_stage=False,
                    load_pretrained_mdl_path=str(pretrained))  # fmt: skip


def main() -> None:
    """Build, save weights and logits for the comparison, then step whenever asked."""
    options, answers = worker(__doc__)
    sys.path.insert(0, str(options.peer / "src" / "models"))
    if options.peer_timm is not None:
        sys.path.insert(0, str(options.peer_timm))

    given = torch.load(options.work / "inputs.pt")
    log_mel, target = (given[key].to(options.device) for key in ("log_mel", "target"))
    labels = nn.functional.one_hot(target, given["classes"]).float()
    model = build(options.size, given["classes"], log_mel.shape[1], options.work)
    audio_model = nn.DataParallel(model).to(options.device)
    named = dict(audio_model.module.named_parameters())
    optimizer = torch.optim.Adam(
        [
            {"params": [p for name, p in named.items() if name not in HEAD], "lr": 1e-4},
            {"params": [p for name, p in named.items() if name in HEAD], "lr": 1e-4},
        ],
        weight_decay=5e-7,
        betas=(0.95, 0.999),
    )
    loss_fn = nn.CrossEntropyLoss()
    audio_model.train()
    with torch.no_grad():
        logits = audio_model(log_mel, "ft_avgtok").cpu()
    torch.save(audio_model.state_dict(), options.work / "peer.pth")
    torch.save(logits, options.work / "logits.pt")
    trained = sum(p.numel() for name, p in named.items() if not name.startswith("v.head"))

    def step(command: str) -> None:
        # Officially float32; "half" asks what autocast alone would give the official code.
        half = command == "half"
        with torch.autocast(options.device, torch.bfloat16) if half else nullcontext():
            output = audio_model(log_mel, "ft_avgtok")
            loss = loss_fn(output, torch.argmax(labels.long(), axis=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # As the official loop reads it for its log; on CUDA this also waits for the device.
        loss.item()

    serve(options, answers, trained, step)


if __name__ == "__main__":
    main()
