"""Probes: classifiers on the embeddings of a frozen encoder.

`ProbeSet` holds embeddings with classes and parts, `PROBES` the classifiers, and `evaluate` scores
one of them over folds, seeds and stores.
"""

from peas.evaluation.probes.base import Probe, choose
from peas.evaluation.probes.closed import KNN, Linear, Weighted, XaresKNN
from peas.evaluation.probes.data import Partition, ProbeSet, partitions
from peas.evaluation.probes.heads import Attentive, Prototypes
from peas.evaluation.probes.scores import Result, evaluate

__all__ = ["PROBES", "Partition", "Probe", "ProbeSet", "Result", "choose", "evaluate", "partitions"]

PROBES: dict[str, type[Probe]] = {
    "knn": KNN,
    "knn_xares": XaresKNN,
    "linear": Linear,
    "weighted": Weighted,
    "attentive": Attentive,
    "prototypes": Prototypes,
}
"""Every probe by its name."""
