"""Joint pretraining step of the official SSAST code, in a process of its own.

A worker of `ssast_pretraining_step.py`, and no script to call: the official model demands timm
0.4.5, which cannot be imported beside the timm that `peas` needs. It reads a line a command from
its standard input and answers each with a line of JSON. Nothing of `peas` is imported here, and
the loop's work is that of the official `traintest_mask.py`: two passes, optimiser, loss and order.
"""

import random
import sys
from contextlib import nullcontext

import torch
from peer import serve, worker
from torch import nn


def main() -> None:
    """Build, save weights and losses for the comparison, then step whenever asked."""
    options, answers = worker(__doc__)
    sys.path.insert(0, str(options.peer / "src" / "models"))
    if options.peer_timm is not None:
        sys.path.insert(0, str(options.peer_timm))
    from ast_models import ASTModel

    given = torch.load(options.work / "inputs.pt")
    log_mel, count = given["log_mel"].to(options.device), given["masked"]
    torch.manual_seed(0)
    model = ASTModel(input_tdim=log_mel.shape[1], model_size=options.size, fshape=16, tshape=16,
                     fstride=16, tstride=16, pretrain_stage=True)  # fmt: skip
    audio_model = nn.DataParallel(model).to(options.device)
    trainables = [p for p in audio_model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainables, 1e-4, weight_decay=5e-7, betas=(0.95, 0.999))
    audio_model.train()

    def losses() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        acc, nce = audio_model(log_mel, "pretrain_mpc", mask_patch=count, cluster=True)
        acc, nce = acc.mean(), nce.mean()
        mse = audio_model(log_mel, "pretrain_mpg", mask_patch=count, cluster=True).mean()
        return acc, nce, mse

    random.seed(0)
    with torch.no_grad():
        torch.save(torch.stack(losses()).cpu(), options.work / "losses.pt")
    torch.save(audio_model.state_dict(), options.work / "peer.pth")
    trained = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith("v.head")
    )

    def step(command: str) -> None:
        # Officially float32; "half" asks what autocast alone would give the official code.
        half = command == "half"
        with torch.autocast(options.device, torch.bfloat16) if half else nullcontext():
            acc, nce, mse = losses()
            loss = nce + 10 * mse
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # As the official loop reads them for its log; on CUDA this also waits for the device.
        acc.item()
        loss.item()

    serve(options, answers, trained, step)


if __name__ == "__main__":
    main()
