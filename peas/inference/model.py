"""`AudioModel`: an encoder with its front end, from sound to embeddings and scores."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from peas.audio.frontend import FrontEnd
from peas.errors import ConfigError
from peas.inference.sound import Audio, waveforms
from peas.inference.windows import (
    Windows,
    cut,
    frame_samples,
    join_bands,
    join_windows,
    layout,
    pool_windows,
)
from peas.models.encoder import Encoder
from peas.parts import make

Pool = Literal["mean", "cls", "mean+std"]
Bands = Literal["concat", "mean"]
BATCH = 16
"""Default number of windows in a pass of the encoder."""


class Frames(NamedTuple):
    """Embeddings over time.

    Attributes:
        embeddings: `[B, T', D']` float32, or `[L, B, T', D']` for several layers; 0 past a clip's
            end.
        times: `[B, T']` float32, centre of each in milliseconds from the clip's beginning; NaN past
            its end.
    """

    embeddings: Tensor
    times: Tensor


class Encoded(NamedTuple):
    """One clip of `AudioModel.encode`.

    Attributes:
        embedding: `[L, D]` float32, on the CPU.
        frames: `[L, T', D']`; of no columns where they were not asked for.
    """

    embedding: Tensor
    frames: Tensor


class WindowScores(NamedTuple):
    """One clip of `AudioModel.score_windows`.

    Attributes:
        scores: `[W, C]` probabilities of each window.
        kept: `[W]` columns of patches that hold sound.
        start: `[W]` milliseconds at which the windows begin.
    """

    scores: Tensor
    kept: Tensor
    start: Tensor

    def of_clip(self, long: Literal["mean", "first"] = "mean") -> Tensor:
        """Probabilities `[C]` of the clip.

        Args:
            long: `mean` of the windows, weighted by how much sound they hold; or the `first`.
        """
        if long == "first":
            return self.scores[0]
        weight = self.kept.double()
        mean: Tensor = (self.scores.double() * weight[:, None]).sum(dim=0) / weight.sum()
        return mean.float()


class Prediction(NamedTuple):
    """A label and its probability."""

    label: str
    score: float


class AudioModel(nn.Module, PyTorchModelHubMixin):
    """An encoder with its front end: sound of any length to embeddings and scores.

    `peas.load` makes it of checkpoints, official files and exported folders.

    `audio` is a path, the bytes of a file, a waveform `[S]` (NumPy or torch), a batch `[B, S]`, or
    a list of any of these, of unequal lengths. A clip that is longer than the model's input is cut
    into windows; the last one is padded as in training. Columns of patches with their centre in
    padding count neither for means nor as frames.

    Layers are numbered from 0 (the embeddings) over the blocks to `layers` (the encoder's output,
    after its last norm); negative numbers count from the end.

    Args:
        encoder: Built, or its class path and settings (`Part.spec`).
        front_end: Likewise; it has frames, mean and standard deviation.
        labels: Names of the classes; empty without a classifier.
        scores: What turns logits into probabilities: `softmax` for one class a clip, `sigmoid`
            for any number.
        origin: What is known of the weights: file, data, metrics. It is saved with the model.

    Attributes:
        sample_rate: Samples per second that the model takes; other rates are resampled.
        dim: Width D of an embedding.
        layers: Number of blocks L.
        hop_ms: Milliseconds from one column of patches to the next.
        window_ms: Length of the model's input.

    Raises:
        ConfigError: A part is not complete, or labels do not fit the classifier.
    """

    def __init__(
        self,
        encoder: dict[str, Any] | Encoder,
        front_end: dict[str, Any] | FrontEnd,
        labels: Sequence[str] = (),
        scores: Literal["softmax", "sigmoid"] = "softmax",
        origin: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.labels = list(labels)
        self.front_end: FrontEnd = _part(front_end, FrontEnd, "front_end")
        self.encoder: Encoder = _part(encoder, Encoder, "encoder")
        if not self.encoder.built:
            self.encoder.build(self.front_end.frames, self.front_end.n_mels, len(self.labels))
        if self.encoder.num_classes != len(self.labels):
            raise ConfigError(
                f"labels: {len(self.labels)} names for a classifier of "
                f"{self.encoder.num_classes} classes"
            )
        if scores not in ("softmax", "sigmoid"):
            raise ConfigError(f"scores is {scores!r}: choose softmax or sigmoid")
        self.activation = scores
        self.origin = dict(origin or {})
        self.eval()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, config: dict[str, Any] | None = None, **options: Any
    ) -> str | None:
        """Writes `config.json` and `model.safetensors`; see `PyTorchModelHubMixin`.

        Args:
            save_directory: The folder.
            config: None = this model's own, whether parts or their settings were given.
            options: Of the mixin.
        """
        own = {
            "encoder": self.encoder.spec(),
            "front_end": self.front_end.spec(),
            "labels": self.labels,
            "scores": self.activation,
            "origin": self.origin,
        }
        saved: str | None = super().save_pretrained(save_directory, config=config or own, **options)
        return saved

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        map_location: str | torch.device = "cpu",
        cache_dir: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **_: Any,
    ) -> "AudioModel":
        """`from_pretrained` as `peas.load`: the mixin would take missing or changed weights."""
        from peas.inference.loading import HUB_FILES, load

        folder = model_id
        if not Path(model_id).is_dir():
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=HUB_FILES,
            )
        return load(folder, map_location)

    # --- what it is -------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound that the model takes."""
        return self.front_end.rate

    @property
    def dim(self) -> int:
        """Width D of an embedding."""
        return self.encoder.width

    @property
    def layers(self) -> int:
        """Number of blocks L."""
        return self.encoder.depth

    @property
    def hop_ms(self) -> float:
        """Milliseconds from one column of patches to the next."""
        return self.encoder.stride[1] * self._frame_ms()[0]

    @property
    def window_ms(self) -> float:
        """Milliseconds of sound in the model's input."""
        return 1000 * self.front_end.samples() / self.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.encoder.parameters()).device

    def __repr__(self) -> str:
        """Its numbers, in one line."""
        return (
            f"AudioModel({type(self.encoder).__name__}, sample_rate={self.sample_rate}, "
            f"dim={self.dim}, layers={self.layers}, hop_ms={self.hop_ms:g}, "
            f"labels={len(self.labels)})"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in torch, but the front end stays in float32: bfloat16 would change the log-mel."""
        self.encoder._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for buffer in self.front_end.buffers():
            buffer.data = buffer.to(fn(buffer).device)
        return self

    # --- sound in, numbers out --------------------------------------------------------------

    def forward(self, waveform: Tensor, length: Tensor | None = None) -> Tensor:
        """Scores `[B, C]`, or without classes embeddings `[B, D]`, of one window; for export.

        Args:
            waveform: `[B, S]` at `sample_rate`; what exceeds the window is cut off.
            length: `[B]` samples of each clip; None = S.
        """
        log_mel = self.front_end(waveform, length).log_mel.to(self._dtype)
        if not self.labels:
            return self.encoder.embedding(log_mel).float()
        return self._probabilities(self.encoder(log_mel))

    @torch.no_grad()
    def embed(
        self,
        audio: Audio,
        rate: int | None = None,
        *,
        layers: int | Sequence[int] | None = None,
        pool: Pool = "mean",
        overlap: float = 0.0,
        batch_size: int = BATCH,
    ) -> Tensor:
        """One embedding a clip.

        Args:
            audio: One clip or several.
            rate: Samples per second of arrays; None = `sample_rate`.
            layers: None = the encoder's output; several give one embedding each.
            pool: `mean` of the patch tokens; `cls`, mean of the special tokens; `mean+std`, mean
                and standard deviation of the patch tokens, 2 D wide.
            overlap: Share of a window that the next one repeats.
            batch_size: Windows in a pass of the encoder.

        Returns:
            `[B, D]` float32 on the CPU, or `[L, B, D]` if `layers` is a list.

        Raises:
            AudioError: A clip cannot be used.
            ConfigError: An option is impossible, or the model has no such layer.
        """
        clips = self._clips(audio, rate)
        encoded = self.encode(
            clips, layers=layers, pool=pool, overlap=overlap, batch_size=batch_size
        )
        embedded = torch.stack([clip.embedding for clip in encoded], dim=1)
        return embedded if _several(layers) else embedded[0]

    @torch.no_grad()
    def frames(
        self,
        audio: Audio,
        rate: int | None = None,
        *,
        layers: int | Sequence[int] | None = None,
        bands: Bands = "concat",
        overlap: float = 0.0,
        batch_size: int = BATCH,
    ) -> Frames:
        """Embeddings over time, one for each column of patches.

        Args:
            audio: One clip or several.
            rate: Samples per second of arrays; None = `sample_rate`.
            layers: None = the encoder's output; several give frames each.
            bands: What becomes of the patches of one time: `concat`, from low to high, F' D wide,
                or their `mean`.
            overlap: Share of a window that the next one repeats; of columns that several windows
                hold the mean is taken.
            batch_size: Windows in a pass of the encoder.

        Raises:
            AudioError: A clip cannot be used.
            ConfigError: An option is impossible, or the model has no such layer.
        """
        encoded = self.encode(
            self._clips(audio, rate),
            layers=layers,
            bands=bands,
            overlap=overlap,
            batch_size=batch_size,
        )
        clips = [clip.frames for clip in encoded]
        longest = max(clip.shape[1] for clip in clips)
        embedded = clips[0].new_zeros(len(clips[0]), len(clips), longest, clips[0].shape[2])
        times = torch.full((len(clips), longest), torch.nan)
        centres = self.times(longest)
        for number, clip in enumerate(clips):
            embedded[:, number, : clip.shape[1]] = clip
            times[number, : clip.shape[1]] = centres[: clip.shape[1]]
        return Frames(embedded if _several(layers) else embedded[0], times)

    @torch.no_grad()
    def encode(
        self,
        clips: Iterable[Tensor],
        *,
        layers: int | Sequence[int] | None = None,
        pool: Pool = "mean",
        bands: Bands | None = None,
        overlap: float = 0.0,
        batch_size: int = BATCH,
    ) -> Iterator[Encoded]:
        """Embeddings of any number of clips and, in the same pass, their frames, clip by clip.

        Args:
            clips: Waveforms `[S]` at `sample_rate`; no more are taken than fill a pass.
            layers: As in `embed`.
            pool: Likewise.
            bands: As in `frames`; None = no frames.
            overlap: Share of a window that the next one repeats.
            batch_size: Windows in a pass of the encoder.

        Raises:
            ConfigError: An option is impossible, or the model has no such layer.
        """
        if pool not in ("mean", "cls", "mean+std"):
            raise ConfigError(f"pool is {pool!r}: choose mean, cls or mean+std")
        if pool == "cls" and not self.encoder.special:
            raise ConfigError(
                f"pool is cls, and {type(self.encoder).__name__} has no special token: choose mean"
            )
        if bands not in (None, "concat", "mean"):
            raise ConfigError(f"bands is {bands!r}: choose concat or mean")
        # Before the first clip is read.
        layout(self.encoder, overlap)
        for windows, count in self._groups(clips, overlap, batch_size):
            sums: list[Tensor] = []
            grids: list[Tensor] = []
            for tokens, kept in self._passes(windows, layers, batch_size):
                sums.append(torch.stack([self._sums(layer, kept, pool) for layer in tokens]))
                if bands:
                    grid = [join_bands(self._grid(layer), bands) for layer in tokens]
                    grids.append(torch.stack(grid).cpu())
            pooled = pool_windows(torch.cat(sums, dim=1), windows, count, pool)
            joined = join_windows(torch.cat(grids, dim=1), windows, count) if bands else []
            for number in range(count):
                yield Encoded(pooled[:, number], joined[number] if bands else pooled[:, :0])

    @torch.no_grad()
    def scores(
        self,
        audio: Audio,
        rate: int | None = None,
        *,
        overlap: float = 0.0,
        long: Literal["mean", "first"] = "mean",
        batch_size: int = BATCH,
    ) -> Tensor:
        """Probabilities `[B, C]` of the classes.

        Args:
            audio: One clip or several.
            rate: Samples per second of arrays; None = `sample_rate`.
            overlap: Share of a window that the next one repeats.
            long: A clip of several windows has the mean of their probabilities, weighted by
                how much sound they hold; `first` scores it by its beginning, as `peas test` does.
            batch_size: Windows in a pass of the encoder.

        Raises:
            AudioError: A clip cannot be used.
            ConfigError: The model has no classifier, or an option is impossible.
        """
        if long not in ("mean", "first"):
            raise ConfigError(f"long is {long!r}: choose mean or first")
        scored = self.score_windows(
            self._clips(audio, rate), overlap=overlap, batch_size=batch_size
        )
        return torch.stack([clip.of_clip(long) for clip in scored])

    @torch.no_grad()
    def score_windows(
        self, clips: Iterable[Tensor], *, overlap: float = 0.0, batch_size: int = BATCH
    ) -> Iterator[WindowScores]:
        """Probabilities of every window of any number of clips, clip by clip.

        Args:
            clips: Waveforms `[S]` at `sample_rate`; no more are taken than fill a pass.
            overlap: Share of a window that the next one repeats.
            batch_size: Windows in a pass of the encoder.

        Raises:
            ConfigError: The model has no classifier, or an option is impossible.
        """
        if not self.labels:
            raise ConfigError(
                "this model has no classifier, so it gives embeddings and no scores: fine-tune it "
                "(`peas fit`), or load a fine-tuned checkpoint"
            )
        hop = self.encoder.stride[1] * self._frame_ms()[0]
        for windows, count in self._groups(clips, overlap, batch_size):
            parts = torch.split(windows.log_mel, batch_size)
            scores = torch.cat([self._probabilities(self.encoder(part)).cpu() for part in parts])
            for number in range(count):
                mine = windows.clip == number
                yield WindowScores(scores[mine], windows.kept[mine], windows.start[mine] * hop)

    def predict(
        self, audio: Audio, rate: int | None = None, *, top: int = 5, **options: Any
    ) -> list[list[Prediction]]:
        """The most probable labels of each clip, best first.

        Args:
            audio: One clip or several.
            rate: Samples per second of arrays; None = `sample_rate`.
            top: Labels of each clip.
            options: Of `scores`.
        """
        if top < 1:
            raise ConfigError(f"top is {top}: give 1 or more")
        values, indices = self.scores(audio, rate, **options).topk(min(top, len(self.labels)))
        return [
            [Prediction(self.labels[index], value) for index, value in zip(*row, strict=True)]
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    # --- windows ----------------------------------------------------------------------------

    def windows(self, waveform: Sequence[Tensor], overlap: float = 0.0) -> Windows:
        """Windows of waveforms `[S]` at `sample_rate`."""
        clips = [clip.to(self.device) for clip in waveform]
        windows = cut(self.front_end, clips, layout(self.encoder, overlap))
        return windows._replace(log_mel=windows.log_mel.to(self._dtype))

    def _clips(self, audio: Audio, rate: int | None) -> Iterator[Tensor]:
        return waveforms(audio, rate, self.front_end)

    def _groups(
        self, clips: Iterable[Tensor], overlap: float, batch_size: int
    ) -> Iterator[tuple[Windows, int]]:
        """Windows of some clips at a time, and the number of the clips."""
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: give 1 or more")
        # A long clip is not padded with many others to its length.
        limit = batch_size * self.front_end.samples()
        group: list[Tensor] = []
        for waveform in clips:
            longest = max(len(clip) for clip in (*group, waveform))
            if group and (len(group) == batch_size or longest * (len(group) + 1) > limit):
                yield self.windows(group, overlap), len(group)
                group = []
            group.append(waveform)
        if group:
            yield self.windows(group, overlap), len(group)

    def _passes(
        self, windows: Windows, layers: int | Sequence[int] | None, batch_size: int
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Passes of `batch_size` windows: tokens `[W, special + N, D]` of each layer, and `kept`.

        Of each pass alone: all tokens of a long clip would not fit into memory.
        """
        numbers = [self.layers] if layers is None else layers
        numbers = list(numbers) if isinstance(numbers, Sequence) else [numbers]
        if not all(isinstance(number, Integral) for number in numbers):
            raise ConfigError(f"layers is {layers!r}: give a number, or a list of numbers")
        if not numbers:
            raise ConfigError("layers is empty: give the numbers of some, or None for the last")
        parts = zip(
            torch.split(windows.log_mel, batch_size),
            torch.split(windows.kept, batch_size),
            strict=True,
        )
        for part, kept in parts:
            yield [tokens.float() for tokens in self.encoder.intermediates(part, numbers)], kept

    def _grid(self, tokens: Tensor) -> Tensor:
        """Tokens of patches by time and band: `[W, T', F', D]`."""
        rows, columns = self.encoder.grid
        patches = tokens[:, self.encoder.special :]
        if self.encoder.time_major:
            return patches.reshape(len(patches), columns, rows, -1)
        return patches.reshape(len(patches), rows, columns, -1).transpose(1, 2)

    def _sums(self, tokens: Tensor, kept: Tensor, pool: Pool) -> Tensor:
        """Sums of each window over what is pooled, `[W, D]`, or `[W, 2 D]` with squares."""
        if pool == "cls":
            special = tokens[:, : self.encoder.special].mean(dim=1)
            return special.cpu().double() * kept[:, None]
        grid = self._grid(tokens)
        inside = torch.arange(grid.shape[1]) < kept[:, None]
        grid = grid * inside.to(grid.device)[:, :, None, None]
        sums = [grid.sum(dim=(1, 2))]
        if pool == "mean+std":
            sums.append(grid.square().sum(dim=(1, 2)))
        return torch.cat(sums, dim=1).cpu().double() / self.encoder.grid[0]

    def _probabilities(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        return logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(dim=-1)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    def _frame_ms(self) -> tuple[float, float]:
        """Milliseconds between two frames, and of one frame."""
        shift, length = frame_samples(self.front_end)
        return 1000 * shift / self.sample_rate, 1000 * length / self.sample_rate

    def times(self, columns: int) -> Tensor:
        """Centres of a clip's first columns of patches in milliseconds, `[T']`."""
        shift, length = self._frame_ms()
        patch, stride = self.encoder.patch[1], self.encoder.stride[1]
        return torch.arange(columns) * stride * shift + ((patch - 1) * shift + length) / 2


def _part(part: Any, base: type[Any], name: str) -> Any:
    if isinstance(part, base):
        return part
    return make(part, base, where=name)


def _several(layers: int | Sequence[int] | None) -> bool:
    return isinstance(layers, Sequence)
