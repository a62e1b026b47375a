"""Probes on tokens, trained by gradient descent: attention pooling and prototypes.

B clips of a batch, L layers, T tokens, D features, C classes, P prototypes.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from peas.errors import ConfigError
from peas.evaluation.logistic import mean_loss
from peas.evaluation.probes.base import Probe
from peas.evaluation.probes.closed import several_layers
from peas.evaluation.probes.data import ProbeSet

RATES = (1e-3, 1e-2)
"""Learning rates of AdamW."""
EPOCHS = 40
BATCH = 64
WEIGHT_DECAY = 1e-2
HEADS = 8
PROTOTYPES_A_CLASS = 20
"""As BAT has 10,000 for the 527 classes of AudioSet."""
DROPOUT = 0.2


class Head(nn.Module):
    """Tokens of clips to logits."""

    @abstractmethod
    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Logits `[B, C]` of tokens `[B, L, T, D]`, of which `valid` `[B, T]` are a clip's."""


class AttentionPooling(Head):
    """Linear classifier of tokens averaged by attention, of up to 8 heads with a query each.

    A head weights tokens by the softmax of its query's product with its share of the features, so
    a pooled clip is as wide as a token. Queries begin with 0: with the mean of the tokens.

    Args:
        mean: `[D]` of the training clips' tokens.
        std: `[D]` likewise.
        classes: Number of classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        heads = math.gcd(HEADS, len(mean))
        self.query = nn.Parameter(torch.zeros(heads, len(mean) // heads))
        self.classifier = nn.Linear(len(mean), classes)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Logits; there is one layer."""
        scaled = (tokens[:, 0] - self.mean) / self.std
        shares = scaled.reshape(*scaled.shape[:2], *self.query.shape)
        attention = torch.einsum("bthd,hd->bth", shares, self.query) / self.query.shape[1] ** 0.5
        attention = attention.masked_fill(~valid.unsqueeze(2), -torch.inf).softmax(dim=1)
        pooled = torch.einsum("bth,bthd->bhd", attention, shares)
        logits: Tensor = self.classifier(pooled.flatten(1))
        return logits


class ConvexGate(Head):
    """Linear classifier of similarities to prototypes, over a convex combination of all layers.

    Convex gated probing (Ghaffari et al. 2026, arXiv 2602.16305) without a class token: tokens of
    each layer are scaled to length 1 and combined by a softmax over layers; a clip is described
    by the least, mean and greatest product of its tokens with each of the learnt prototypes.

    Args:
        layers: Number of layers.
        width: D.
        classes: Number of classes.
    """

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(layers))
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES_A_CLASS * classes, width))
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(3 * len(self.prototypes), classes)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Logits."""
        scaled = functional.normalize(tokens, dim=3)
        mixed = torch.einsum("l,bltd->btd", self.gate.softmax(dim=0), scaled)
        similarity = mixed @ functional.normalize(self.prototypes, dim=1).T
        absent = ~valid.unsqueeze(2)
        least = similarity.masked_fill(absent, torch.inf).amin(dim=1)
        greatest = similarity.masked_fill(absent, -torch.inf).amax(dim=1)
        mean = similarity.masked_fill(absent, 0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
        logits: Tensor = self.classifier(self.dropout(torch.cat([least, mean, greatest], dim=1)))
        return logits


class TokenProbe(Probe):
    """A head on tokens, trained by AdamW with a cosine schedule; the learning rate is chosen."""

    grid = RATES
    # Each is a training run.
    most_choices = 1
    seeded = True

    def check(self, data: ProbeSet) -> None:
        """Refuses a set without tokens.

        Raises:
            ConfigError: It has none, or no such layer.
        """
        super().check(data)
        if data.tokens is None:
            name = type(self).__name__.lower()
            raise ConfigError(
                f"{data.name} has no frames, and {name} pools them: write them by "
                "`peas embed --frames`"
            )

    @abstractmethod
    def head(self, data: ProbeSet, train: Tensor) -> Head:
        """An untrained head for a set."""

    def scores(
        self, data: ProbeSet, train: Tensor, test: Tensor, value: float | None, seed: int
    ) -> Tensor:
        """Logits `[K, C]` of a head trained on the training clips."""
        assert value is not None
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = self.head(data, train).to(device)
            self._fit(head, data, train, value, device)
        head.eval()
        with torch.no_grad():
            parts = [head(*self._batch(data, rows, device)) for rows in torch.split(test, BATCH)]
        return torch.cat(parts).cpu()

    def _fit(
        self, head: Head, data: ProbeSet, train: Tensor, rate: float, device: torch.device
    ) -> None:
        optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
        steps = EPOCHS * math.ceil(len(train) / BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(EPOCHS):
            for rows in torch.split(train[torch.randperm(len(train))], BATCH):
                targets = data.targets[rows].to(device, torch.float32)
                loss = mean_loss(head(*self._batch(data, rows, device)), targets, data.multi_label)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()

    def _batch(self, data: ProbeSet, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens `[B, L, T, D]` and which of them are a clip's, `[B, T]`."""
        clips = list(self._tokens(data, rows))
        lengths = torch.tensor([clip.shape[1] for clip in clips])
        padded = pad_sequence([clip.transpose(0, 1) for clip in clips], batch_first=True)
        valid = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
        return padded.transpose(1, 2).to(device), valid.to(device)

    def _tokens(self, data: ProbeSet, rows: Tensor) -> Iterator[Tensor]:
        assert data.tokens is not None
        layers = self.layers(data)
        for row in rows.tolist():
            yield data.tokens(row, layers).float()


class Attentive(TokenProbe):
    """Attention pooling of one layer's tokens, then a linear classifier."""

    def head(self, data: ProbeSet, train: Tensor) -> Head:
        """Attention pooling that standardises by the training clips' tokens."""
        count, total, squares = 0, torch.zeros(1).double(), torch.zeros(1).double()
        for tokens in self._tokens(data, train):
            count += tokens.shape[1]
            total = total + tokens[0].double().sum(dim=0)
            squares = squares + tokens[0].double().square().sum(dim=0)
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        std = torch.where(std == 0, 1.0, std)
        return AttentionPooling(mean.float(), std.float(), data.targets.shape[1])


class Prototypes(TokenProbe):
    """Prototypes over a convex combination of all layers."""

    def check(self, data: ProbeSet) -> None:
        """Refuses a set without tokens, or of one layer.

        Raises:
            ConfigError: It has none, or one layer.
        """
        several_layers(data, "prototypes")
        super().check(data)

    def layers(self, data: ProbeSet) -> list[int]:
        """All of them."""
        return list(range(len(data.layers)))

    def head(self, data: ProbeSet, train: Tensor) -> Head:
        """Prototypes for these layers and classes."""
        width = next(self._tokens(data, train[:1])).shape[2]
        return ConvexGate(len(data.layers), width, data.targets.shape[1])
