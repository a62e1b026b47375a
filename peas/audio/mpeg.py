"""MP3 streams, counted frame by frame: what a decoder thinks of their length is an estimate."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from peas.errors import AudioError

SLACK = 2 * 1152
"""Samples: decoders differ by up to two frames in what they take for padding at an end."""

_KBITS = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


_SYNC = re.compile(rb"\xff[\xe0-\xff]|ID3")


class _Frame(NamedTuple):
    """What a frame's header says.

    Attributes:
        size: Bytes of the frame, header included.
        samples: Samples per channel in it.
        kind: What frames of one stream have in common: version, layer and rate.
        counts_at: Where in the frame a Xing header would lie; 0 = not in this layer.
    """

    size: int
    samples: int
    kind: tuple[int, int, int]
    counts_at: int


class _Run(NamedTuple):
    """Frames that one encoder wrote one after the other.

    Attributes:
        frames: Where each frame with sound begins and ends.
        head: The frame before them that states their number; empty = none does.
        stated: The number; None = not stated.
        size: Bytes that the stream has by the same statement; 0 = not stated.
    """

    frames: list[tuple[int, int]]
    head: bytes = b""
    stated: int | None = None
    size: int = 0


def pieces(data: bytes, label: str, samples: int = 0) -> list[bytes]:
    """Split a stream into parts of which libsndfile finds the right length.

    libsndfile takes the number of frames from the first frame, where there is a Xing header, and
    else from the first frame's bit rate. Both are wrong where files were joined, and the second
    one where the bit rate varies: the rest would be dropped in silence.

    Args:
        data: The stream, without what surrounds it.
        label: Name of the clip in messages.
        samples: Samples per channel by a container around the stream; 0 = not stated.

    Returns:
        Streams that are decoded on their own; `[data]` where it is right already, and nothing
        where there is no frame whose size is known.

    Raises:
        AudioError: The stream is cut short, or changes its rate.
    """
    runs, first, tail = _walk(data, label)
    if first is None:
        return []
    count = sum(len(run.frames) for run in runs)
    if samples > count * first.samples + SLACK:
        raise _cut(label, f"its header promises {samples} samples and {count} MPEG frames follow")
    for number, run in enumerate(runs):
        last = number == len(runs) - 1
        missing = 0 if run.stated is None else run.stated - len(run.frames)
        # Some encoders count the frame that holds the number.
        if missing > 1 or (missing == 1 and (run.size > len(data) or (last and tail))):
            raise _cut(label, f"{len(run.frames)} of {run.stated} MPEG frames are there")
    if tail and runs[-1].stated is None and not samples:
        raise _cut(label, f"its last MPEG frame has {tail} bytes less than its header promises")
    right = [bool(run.head) and (run.stated or 0) >= len(run.frames) for run in runs]
    if len(runs) == 1 and (right[0] or not first.counts_at):
        return [data]
    return [
        (run.head if is_right else _counted(data, run)) + _joined(data, run.frames)
        for run, is_right in zip(runs, right, strict=True)
        if run.frames
    ]


def _cut(label: str, what: str) -> AudioError:
    return AudioError(
        f"{label}: cut short, {what}; copy or download it again, or keep what is there: "
        "ffmpeg -i in.mp3 -c copy out.mp3"
    )


@functools.lru_cache(maxsize=4096)
def _frame(header: bytes) -> _Frame | None:
    """Meaning of four bytes; None where they are no header of a frame."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bits, rate_index, padded = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate_index == 3:
        return None
    rate = _RATES[version][rate_index]
    full = version == 3
    bitrate = 1000 * _KBITS[full, layer][bits]
    mono = header[3] >> 6 == 3
    if layer == 1:
        return _Frame(4 * (12 * bitrate // rate + padded), 384, (version, layer, rate), 0)
    samples = 576 if layer == 3 and not full else 1152
    side = ((17 if mono else 32) if full else (9 if mono else 17)) + 4
    size = samples // 8 * bitrate // rate + padded
    return _Frame(size, samples, (version, layer, rate), side if layer == 3 else 0)


def _walk(data: bytes, label: str) -> tuple[list[_Run], _Frame | None, int]:
    """Runs of frames, the first frame, and the bytes that the last one lacks."""
    runs: list[_Run] = []
    first: _Frame | None = None
    position, end = 0, len(data)
    joined = False
    while position < end - 3:
        frame = _frame(data[position : position + 4])
        if frame is None or (first is not None and frame.kind != first.kind) or not joined:
            found = _next_frame(data, position)
            if found is None:
                break
            position = found
            frame = _frame(data[position : position + 4])
            assert frame is not None
            if first is not None and frame.kind != first.kind:
                raise AudioError(
                    f"{label}: joined from MPEG streams of {first.kind[2]} and {frame.kind[2]} Hz, "
                    "or of other layers, of which a decoder reads one; convert each, then join them"
                )
        if first is None:
            first = frame
        stop = position + frame.size
        if stop > end:
            return runs, first, stop - end
        head = _stated(data[position:stop], frame)
        if head is not None:
            runs.append(head)
        elif runs:
            runs[-1].frames.append((position, stop))
        else:
            runs.append(_Run([(position, stop)]))
        position, joined = stop, True
    return runs, first, 0


def _next_frame(data: bytes, position: int) -> int | None:
    """Where the next frame begins that another one follows, or nothing: tags are passed over."""
    while True:
        if data[position : position + 3] == b"ID3":
            position += id3_size(data[position : position + 10])
        frame = _frame(data[position : position + 4])
        if frame is not None:
            after = position + frame.size
            following = _frame(data[after : after + 4])
            if after >= len(data) or (following is not None and following.kind == frame.kind):
                # A single frame behind a tag that only looks like one would be no sound.
                if after <= len(data):
                    return position
            elif data[after : after + 3] in (b"ID3", b"TAG", b"APE"):
                return position
        match = _SYNC.search(data, position + 1)
        if match is None:
            return None
        position = match.start()


def id3_size(head: bytes) -> int:
    """Bytes of the ID3 tag that begins with these ten; 0 where none does."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = functools.reduce(lambda total, byte: total << 7 | byte, head[6:10], 0)
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _stated(frame: bytes, header: _Frame) -> _Run | None:
    """The run that begins with a frame that holds a Xing or VBRI header instead of sound."""
    at = header.counts_at
    if not at:
        return None
    if frame[at : at + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(frame[at + 4 : at + 8], "big")
        fields = [int.from_bytes(frame[at + n : at + n + 4], "big") for n in (8, 12)]
        count = fields.pop(0) if flags & 1 else None
        return _Run([], frame, count, fields[0] if flags & 2 else 0)
    if frame[36:40] == b"VBRI":
        # Decoders other than Fraunhofer's do not know it: what it says is compared, not used.
        count = int.from_bytes(frame[50:54], "big")
        return _Run([], b"", count, int.from_bytes(frame[46:50], "big"))
    return None


def _joined(data: bytes, frames: list[tuple[int, int]]) -> bytes:
    """The frames alone; in one piece where nothing lies between them."""
    start, stop = frames[0][0], frames[-1][1]
    if stop - start == sum(end - begin for begin, end in frames):
        return data[start:stop]
    return b"".join(data[begin:end] for begin, end in frames)


def _counted(data: bytes, run: _Run) -> bytes:
    """A frame that states the number of a run's frames."""
    begin = run.frames[0][0]
    header = bytes([data[begin], data[begin + 1] | 1, *data[begin + 2 : begin + 4]])
    frame = _frame(header)
    assert frame is not None
    said = b"Xing" + (1).to_bytes(4, "big") + len(run.frames).to_bytes(4, "big")
    return (header + bytes(frame.counts_at - 4) + said).ljust(frame.size, b"\0")
