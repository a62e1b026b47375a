"""Online kNN probe: how well a pretraining encoder separates the classes of a labelled set."""

from typing import Literal

from peas.callbacks.online_probes import OnlineProbes
from peas.data.module import ClipDataModule


class KNN(OnlineProbes):
    """`OnlineProbes` of kNN alone: logs `knn/accuracy`.

    Args:
        data: The labelled set, one class per clip.
        k: Number of neighbours.
        every_n_epochs: Epochs between two measurements; the first and the last epoch have one.
        split: As of `OnlineProbes`.

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    def __init__(
        self,
        data: ClipDataModule,
        k: int = 10,
        every_n_epochs: int = 10,
        split: Literal["validation", "test", "folds"] = "validation",
    ) -> None:
        super().__init__(data, ("knn",), k, every_n_epochs, split)
