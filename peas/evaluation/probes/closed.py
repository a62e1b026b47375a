"""Probes without random numbers: nearest neighbours and logistic regression."""

import torch
from torch import Tensor

from peas.errors import ConfigError
from peas.evaluation import knn, logistic
from peas.evaluation.probes.base import Probe
from peas.evaluation.probes.data import ProbeSet

NEIGHBOURS = 10
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C, the inverse strength of the L2 penalty."""


SLOPE = 1e-4
"""At which a fit with layers' weights ends, many times as long as one without."""


class KNN(Probe):
    """Votes of the 10 nearest clips by cosine distance of standardised features."""

    def check(self, data: ProbeSet) -> None:
        """Refuses clips of several classes.

        Raises:
            ConfigError: Clips have several classes, or there is no such layer.
        """
        super().check(data)
        if data.multi_label:
            raise ConfigError(
                f"{data.name} has clips of several classes, and kNN predicts one: leave knn out of "
                "`--probes`"
            )

    def scores(
        self, data: ProbeSet, train: Tensor, test: Tensor, value: float | None, seed: int
    ) -> Tensor:
        """Votes `[K, C]`."""
        features = data.embeddings[data.layer(self.layer)]
        k = min(NEIGHBOURS, len(train))
        return self.votes(features[train], data.targets[train], features[test], k)

    def votes(self, train: Tensor, targets: Tensor, test: Tensor, k: int) -> Tensor:
        """As `peas.evaluation.knn.votes`."""
        return knn.votes(train, targets, test, k)


class XaresKNN(KNN):
    """The kNN of X-ARES, to compare with its scores."""

    def votes(self, train: Tensor, targets: Tensor, test: Tensor, k: int) -> Tensor:
        """As `peas.evaluation.knn.xares_votes`."""
        return knn.xares_votes(train, targets, test, k)


class Linear(Probe):
    """Logistic regression on the standardised features of one layer."""

    grid = STRENGTHS

    def scores(
        self, data: ProbeSet, train: Tensor, test: Tensor, value: float | None, seed: int
    ) -> Tensor:
        """Logits `[K, C]`."""
        assert value is not None
        features = data.embeddings[data.layer(self.layer)]
        scaled, tested = logistic.standardise(features[train], features[test])
        model = logistic.fit(scaled, data.targets[train], value, multi_label=data.multi_label)
        return model(tested)


class Weighted(Probe):
    """Logistic regression on a convex combination of all layers, whose weights are learnt too.

    The layers are standardised first, so that a weight of the softmax is a layer's share.
    """

    grid = STRENGTHS

    def check(self, data: ProbeSet) -> None:
        """Refuses a single layer.

        Raises:
            ConfigError: The set has one layer.
        """
        several_layers(data, "weighted")

    def layers(self, data: ProbeSet) -> list[int]:
        """All of them."""
        return list(range(len(data.layers)))

    def scores(
        self, data: ProbeSet, train: Tensor, test: Tensor, value: float | None, seed: int
    ) -> Tensor:
        """Logits `[K, C]`."""
        assert value is not None
        layers, tested = logistic.standardise(data.embeddings[:, train], data.embeddings[:, test])
        targets = data.targets[train].double()
        # Of all layers' clips, so that no direction of any layer is missing.
        basis, penalty = logistic.whitening(layers.flatten(0, 1), 1 / (value * len(train)))
        layers, tested = layers @ basis, tested @ basis
        gate = layers.new_zeros(len(layers), requires_grad=True)
        weight = layers.new_zeros(basis.shape[1], targets.shape[1], requires_grad=True)
        bias = layers.new_zeros(targets.shape[1], requires_grad=True)
        parameters = [gate, weight, bias]

        def logits(of: Tensor) -> Tensor:
            mixed = torch.einsum("l,lnd->nd", gate.softmax(dim=0), of)
            return mixed @ weight + bias

        def loss() -> Tensor:
            with torch.enable_grad():
                total = logistic.mean_loss(logits(layers), targets, data.multi_label)
                total = total + (penalty * weight.square()).sum() / 2
                gradients = torch.autograd.grad(total, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            return total.detach()

        logistic.minimise(loss, parameters, SLOPE)
        return logits(tested).detach()


def several_layers(data: ProbeSet, probe: str) -> None:
    """Refuses a set of one layer.

    Raises:
        ConfigError: It has one.
    """
    if len(data.layers) < 2:
        raise ConfigError(
            f"{data.name} has layer {data.layers[0]} alone, and {probe} combines layers: write "
            "more by `peas embed --layers`"
        )
