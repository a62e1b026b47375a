"""MP3 streams, counted frame by frame, as a decoder only estimates their length."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from peas.errors import AudioError

SLACK = 2 * 1152
"""Samples: decoders differ by up to two frames in the padding that they remove."""

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
    """Header of a frame.

    Attributes:
        size: Bytes of the frame, header included.
        samples: Samples per channel.
        kind: Version, layer and rate, which the frames of a stream have in common.
        xing_at: Offset of a Xing header in the frame; 0 = not in this layer.
    """

    size: int
    samples: int
    kind: tuple[int, int, int]
    xing_at: int


class _Run(NamedTuple):
    """Consecutive frames of one encoder.

    Attributes:
        frames: Start and end of each frame with sound.
        head: The frame before them with a Xing header; empty = none.
        num_frames: Number of frames in that header; None = unknown.
        size: Bytes of the stream in that header; 0 = unknown.
    """

    frames: list[tuple[int, int]]
    head: bytes = b""
    num_frames: int | None = None
    size: int = 0


def pieces(data: bytes, label: str, samples: int = 0) -> list[bytes]:
    """Split a stream into parts whose length libsndfile gets right.

    libsndfile takes the number of frames from a Xing header in the first frame, else from the bit
    rate of the first frame. Both are wrong for concatenated files, and the second one for variable
    bit rates: the rest would be dropped silently.

    Args:
        data: The stream, without its container.
        label: Name of the clip in messages.
        samples: Samples per channel according to the container; 0 = unknown.

    Returns:
        Streams to decode separately: `[data]` if its length is right already, `[]` if there is no
        frame of known size.

    Raises:
        AudioError: The stream is truncated, or changes its rate.
    """
    runs, first, tail = _walk(data, label)
    if first is None:
        return []
    count = sum(len(run.frames) for run in runs)
    if samples > count * first.samples + SLACK:
        raise _cut(label, f"its header promises {samples} samples and {count} MPEG frames follow")
    for number, run in enumerate(runs):
        last = number == len(runs) - 1
        missing = 0 if run.num_frames is None else run.num_frames - len(run.frames)
        # Some encoders count the frame with the header.
        if missing > 1 or (missing == 1 and (run.size > len(data) or (last and tail))):
            raise _cut(label, f"{len(run.frames)} of {run.num_frames} MPEG frames are there")
    if tail and runs[-1].num_frames is None and not samples:
        raise _cut(label, f"its last MPEG frame has {tail} bytes less than its header promises")
    valid = [bool(run.head) and (run.num_frames or 0) >= len(run.frames) for run in runs]
    if len(runs) == 1 and (valid[0] or not first.xing_at):
        return [data]
    return [
        (run.head if is_valid else _xing_frame(data, run)) + _concatenated(data, run.frames)
        for run, is_valid in zip(runs, valid, strict=True)
        if run.frames
    ]


def _cut(label: str, what: str) -> AudioError:
    return AudioError(
        f"{label}: cut short, {what}; copy or download it again, or keep what is there: "
        "ffmpeg -i in.mp3 -c copy out.mp3"
    )


@functools.lru_cache(maxsize=4096)
def _frame(header: bytes) -> _Frame | None:
    """Header of a frame in four bytes; None if it is none."""
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
    """Runs of frames, the first frame, and the missing bytes of the last one."""
    runs: list[_Run] = []
    first: _Frame | None = None
    position, end = 0, len(data)
    adjacent = False
    while position < end - 3:
        frame = _frame(data[position : position + 4])
        if frame is None or (first is not None and frame.kind != first.kind) or not adjacent:
            start = _next_frame(data, position)
            if start is None:
                break
            position = start
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
        head = _run_header(data[position:stop], frame)
        if head is not None:
            runs.append(head)
        elif runs:
            runs[-1].frames.append((position, stop))
        else:
            runs.append(_Run([(position, stop)]))
        position, adjacent = stop, True
    return runs, first, 0


def _next_frame(data: bytes, position: int) -> int | None:
    """Offset of the next frame that is followed by another one or the end; tags are skipped."""
    while True:
        if data[position : position + 3] == b"ID3":
            position += id3_size(data[position : position + 10])
        frame = _frame(data[position : position + 4])
        if frame is not None:
            after = position + frame.size
            following = _frame(data[after : after + 4])
            if after >= len(data) or (following is not None and following.kind == frame.kind):
                # Not a single frame after a tag that only looks like one.
                if after <= len(data):
                    return position
            elif data[after : after + 3] in (b"ID3", b"TAG", b"APE"):
                return position
        match = _SYNC.search(data, position + 1)
        if match is None:
            return None
        position = match.start()


def id3_size(head: bytes) -> int:
    """Size of the ID3 tag that begins with these ten bytes; 0 if there is none."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = functools.reduce(lambda total, byte: total << 7 | byte, head[6:10], 0)
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _run_header(frame: bytes, header: _Frame) -> _Run | None:
    """The run that begins with this frame, if it holds a Xing or VBRI header instead of sound."""
    at = header.xing_at
    if not at:
        return None
    if frame[at : at + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(frame[at + 4 : at + 8], "big")
        fields = [int.from_bytes(frame[at + n : at + n + 4], "big") for n in (8, 12)]
        count = fields.pop(0) if flags & 1 else None
        return _Run([], frame, count, fields[0] if flags & 2 else 0)
    if frame[36:40] == b"VBRI":
        # Only Fraunhofer's decoder knows it: the count is checked, the header is replaced.
        count = int.from_bytes(frame[50:54], "big")
        return _Run([], b"", count, int.from_bytes(frame[46:50], "big"))
    return None


def _concatenated(data: bytes, frames: list[tuple[int, int]]) -> bytes:
    """The frames without what lies between them."""
    start, stop = frames[0][0], frames[-1][1]
    if stop - start == sum(end - begin for begin, end in frames):
        return data[start:stop]
    return b"".join(data[begin:end] for begin, end in frames)


def _xing_frame(data: bytes, run: _Run) -> bytes:
    """A frame with a Xing header for a run."""
    begin = run.frames[0][0]
    header = bytes([data[begin], data[begin + 1] | 1, *data[begin + 2 : begin + 4]])
    frame = _frame(header)
    assert frame is not None
    xing = b"Xing" + (1).to_bytes(4, "big") + len(run.frames).to_bytes(4, "big")
    return (header + bytes(frame.xing_at - 4) + xing).ljust(frame.size, b"\0")
