"""Compare the length in the header of a sound file with the bytes that are there.

libsndfile silently decodes most truncated files, and of concatenated files the first one only. A
clip is either complete or an error, never silently truncated.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from peas.audio import mpeg
from peas.errors import AudioError

UNCHECKED = {"IRCAM", "MAT4", "MAT5", "MPC2K", "PAF", "PVF", "WVE", "XI"}
"""Formats of libsndfile whose truncation cannot be detected here."""

# Bytes after an Ogg stream that are searched for another one, and bytes of a block.
_TAGS, _BLOCK = 1 << 24, 1 << 16
# Limit of concatenated streams: each has a decoder, and a small file could hold any number.
_MOST_JOINED = 1_000
# Limit of chunks: a damaged file may seem to hold one for every 8 bytes.
_MOST_CHUNKS = 10_000
_W64_ID = bytes.fromhex("2e91cf11a5d628db04c10000")
_FLAC_START = b"fLaC\0\0\0\x22"


class _Chunks(NamedTuple):
    """Layout of a file of chunks.

    Attributes:
        first: Offset of its first chunk.
        header: `struct` format of the id and the size of a chunk.
        counted: Whether the size includes the header.
        align: Chunks begin at multiples of this.
        sound: Id of the chunk with the samples.
        files: Ids at the beginning of a file.
    """

    first: int
    header: str
    counted: bool
    align: int
    sound: bytes
    files: tuple[bytes, ...]


def _chunks(head: bytes) -> _Chunks | None:
    """Layout of a file of chunks by its first bytes; None for other formats."""
    kind = head[8:12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and kind == b"WAVE":
        order = ">" if head[:4] == b"RIFX" else "<"
        return _Chunks(12, f"{order}4sI", False, 2, b"data", (b"RIFF", b"RIFX", b"RF64"))
    if head[:4] == b"FORM" and kind in (b"AIFF", b"AIFC", b"8SVX", b"16SV"):
        sound = b"SSND" if kind[:3] == b"AIF" else b"BODY"
        return _Chunks(12, ">4sI", False, 2, sound, (b"FORM",))
    if head[:16] == b"riff" + _W64_ID:
        data = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
        return _Chunks(40, "<16sq", True, 8, data, (b"riff" + _W64_ID,))
    if head[:4] == b"caff":
        return _Chunks(8, ">4sq", False, 1, b"data", (b"caff",))
    return None


def split(
    stream: BinaryIO, label: str, *, entire: bool = True, most_bytes: int | None = None
) -> list[bytes] | None:
    """Check the length of a file, and find the streams in it.

    Args:
        stream: The file, at its beginning.
        label: Name of the clip in messages.
        entire: Whether all of it is decoded: FLAC is then searched for a second file after it.
        most_bytes: Size above which an MPEG stream is refused; None = any.

    Returns:
        The streams to decode one after the other: the links of an Ogg chain, concatenated MP3, MP3
        in WAV. None: the file as it is.

    Raises:
        AudioError: The file is truncated, or holds sound that the decoder would not reach.
    """
    base = mpeg.id3_size(stream.read(10))
    stream.seek(base)
    head = stream.read(32)
    end = stream.seek(0, io.SEEK_END)
    stream.seek(base)
    layout = _chunks(head)
    if layout is not None:
        embedded = _check_chunks(stream, base, end, head, layout, label)
        return None if embedded is None else _mpeg(stream, *embedded, label, most_bytes)
    if head[:4] == b"OggS":
        links = _check_ogg(stream, label)
        return None if links is None else [_part(stream, *link) for link in links]
    if head[:1] == b"\xff" and head[1:2] >= b"\xe0":
        pieces = _mpeg(stream, base, end - base, 0, label, most_bytes)
        # As it is, with the tags around it, if nothing has to be repaired.
        return None if len(pieces) == 1 and len(pieces[0]) == end - base else pieces
    if head[:4] == b"fLaC":
        if entire:
            # So many bytes are too long for a clip, whatever its header says.
            if most_bytes is not None and end - base > most_bytes + _TAGS:
                raise AudioError(
                    f"{label}: {end - base} bytes of FLAC are too many for one clip (max_samples); "
                    "cut it up, or raise max_samples (in a run data.init_args.max_samples)"
                )
            _check_flac(stream, label)
    elif head[:20] == b"Creative Voice File\x1a":
        _check_voc(stream, base, end, label)
    else:
        size = _size_in_header(stream, head)
        if size is not None and base + size > end:
            raise truncated(label, f"its header promises {size} bytes and {end - base} are there")
    return None


def truncated(label: str, what: str) -> AudioError:
    """The error of a truncated file."""
    return AudioError(f"{label}: cut short, {what}; copy or download it again")


def _joined(label: str, what: str) -> AudioError:
    return AudioError(
        f"{label}: holds {what}, of which a decoder reads the first alone; split it, or "
        "convert each part and join them as WAV"
    )


def _part(stream: BinaryIO, start: int, stop: int) -> bytes:
    stream.seek(start)
    return stream.read(stop - start)


def _mpeg(
    stream: BinaryIO, start: int, size: int, samples: int, label: str, most_bytes: int | None
) -> list[bytes]:
    """The parts of an MPEG stream that are decoded separately."""
    if most_bytes is not None and size > most_bytes:
        raise AudioError(
            f"{label}: {size} bytes of MPEG sound are too many for one clip (max_samples); cut it "
            "up: ffmpeg -i in.mp3 -f segment -segment_time 600 -c copy out%d.mp3"
        )
    pieces = mpeg.pieces(_part(stream, start, start + size), label, samples)
    if not pieces:
        raise AudioError(
            f"{label}: cannot be decoded, it holds no MPEG frame whose size is stated (a free bit "
            "rate, or damage); convert it: ffmpeg -i in.mp3 out.wav"
        )
    _require_few(pieces, label)
    return pieces


def _unknown(size: int) -> bool:
    """Whether a 32-bit size is a placeholder near 2 or 4 GiB, written into a pipe."""
    return min(abs(size - 2**31), abs(size - 2**32)) <= 4096


def _check_ogg(stream: BinaryIO, label: str) -> list[tuple[int, int]] | None:
    """Walk an Ogg file's pages: each logical stream must reach a page with its end flag (RFC 3533).

    A page after the end of all streams begins the next link of a chain. Other bytes may follow
    there, as some programs append tags.
    """
    unfinished: set[bytes] = set()
    links: list[tuple[int, int]] = []
    start = position = stream.tell()
    while len(header := stream.read(27)) == 27:
        if header[:4] != b"OggS":
            if unfinished:
                break
            # Tags, perhaps followed by another link.
            link = _next_link(stream, position)
            if link is None:
                # A decoder would search all of them for the last page.
                if stream.seek(0, io.SEEK_END) - position > _TAGS:
                    raise AudioError(
                        f"{label}: more than {_TAGS} bytes after its Ogg stream are no sound; "
                        "copy or download it again"
                    )
                break
            start = position = stream.seek(link)
            continue
        flags, serial, segments = header[5], header[14:18], header[26]
        sizes = stream.read(segments)
        body = sum(sizes)
        if len(sizes) < segments or len(stream.read(body)) < body:
            raise truncated(label, "its last Ogg page is incomplete")
        position += 27 + segments + body
        if flags & 4:
            unfinished.discard(serial)
            if not unfinished:
                links.append((start, position))
                start = position
                _require_few(links, label)
        else:
            unfinished.add(serial)
    if unfinished:
        raise truncated(label, "its last Ogg page lacks the end-of-stream flag")
    return links if len(links) > 1 else None


def _next_link(stream: BinaryIO, position: int) -> int | None:
    """Offset of the next Ogg stream from a position on; None if there is none soon."""
    stream.seek(position)
    kept = b""
    for _ in range(_TAGS // _BLOCK):
        block = kept + stream.read(_BLOCK)
        if len(block) == len(kept):
            return None
        match = re.search(rb"OggS\0[\x02\x06]", block)
        if match is not None:
            return position + match.start()
        kept = block[-5:]
        position += len(block) - len(kept)
    return None


def _require_few(joined: Sequence[object], label: str) -> None:
    if len(joined) > _MOST_JOINED:
        raise AudioError(
            f"{label}: joined from more than {_MOST_JOINED} streams; convert it: ffmpeg -i in "
            "out.wav"
        )


def _walk(stream: BinaryIO, base: int, layout: _Chunks) -> Iterator[tuple[bytes, int, int]]:
    """Id, offset and size of each chunk; a size below 0 = unknown."""
    width = struct.calcsize(layout.header)
    position = stream.seek(base + layout.first)
    for _ in range(_MOST_CHUNKS):
        header = stream.read(width)
        if len(header) < width:
            return
        name, size = struct.unpack(layout.header, header)
        position += width
        size -= width if layout.counted else 0
        yield name, position, size
        if size < 0:
            return
        position += size
        position = stream.seek(position + (base - position) % layout.align)


def _check_chunks(
    stream: BinaryIO, base: int, end: int, head: bytes, layout: _Chunks, label: str
) -> tuple[int, int, int] | None:
    """Walk the chunks of a file: there must be one with samples, and it must be complete.

    Returns:
        Offset and size of the MPEG stream in a WAV file, and its samples per channel by the `fact`
        chunk, 0 if there is none; None = it holds no such stream.
    """
    order = layout.header[0]
    sound: tuple[int, int] | None = None
    long_size: int | None = None
    coding, samples = 0, 0
    for name, start, size in _walk(stream, base, layout):
        body = stream.read(16) if name in (b"ds64", b"fmt ", b"fact") else b""
        if name == b"ds64" and len(body) == 16:
            long_size = struct.unpack("<Q", body[8:])[0]
        elif name == b"fmt " and len(body) >= 2:
            coding = struct.unpack(f"{order}H", body[:2])[0]
        elif name == b"fact" and len(body) >= 4:
            samples = struct.unpack(f"{order}I", body[:4])[0]
        elif name == layout.sound and sound is None:
            is_long = head[:4] == b"RF64" and size == 0xFFFFFFFF and long_size is not None
            if is_long and long_size is not None:
                size = long_size
            unknown = size < 0 or (layout.header[1:] == "4sI" and not is_long and _unknown(size))
            if not unknown and start + size > end:
                raise truncated(
                    label, f"its header promises {size} bytes of sound and {end - start} follow"
                )
            # A killed program leaves a size of 0, and the decoder takes what follows.
            if unknown or not size or is_long:
                sound = start, size if is_long else end - start
                break
            sound = start, size
        elif name == layout.sound or name in layout.files:
            raise _joined(label, f"a second {name[:4].decode()!r}")
    if sound is None:
        raise truncated(label, "it ends before its samples begin")
    is_mpeg = layout.sound == b"data" and coding in (0x50, 0x55)
    return (*sound, samples) if is_mpeg else None


def _check_flac(stream: BinaryIO, label: str) -> None:
    """Refuse a second FLAC file after the first one, which would not be decoded."""
    size = 1 << 20
    kept = stream.read(len(_FLAC_START))[1:]
    while block := stream.read(size):
        if _FLAC_START in kept + block:
            raise _joined(label, "several FLAC streams")
        kept = block[1 - len(_FLAC_START) :]


def _check_voc(stream: BinaryIO, base: int, end: int, label: str) -> None:
    """Walk the blocks of a VOC file: all must be complete, and one of them sound."""
    (first,) = struct.unpack("<H", stream.read(22)[20:])
    position = stream.seek(base + first)
    sounds = 0
    while (kind := stream.read(1)) not in (b"", b"\0"):
        size = int.from_bytes(stream.read(3), "little")
        position += 4 + size
        if position > end:
            raise truncated(label, f"its last block lacks {position - end} bytes")
        # Sound, its continuation, silence, and sound with an extended header.
        sounds += kind in (b"\1", b"\2", b"\3", b"\x09")
        stream.seek(position)
    if sounds > 1:
        raise _joined(label, f"{sounds} blocks of sound")


def _size_in_header(stream: BinaryIO, head: bytes) -> int | None:
    """Size of a file by its header; None if unknown."""
    if head[:4] in (b".snd", b"dns."):
        order = ">" if head[:4] == b".snd" else "<"
        first, size = struct.unpack(f"{order}II", head[4:12].ljust(8, b"\0"))
        return None if _unknown(size) else int(first + size)
    if head[:4] == b"2BIT":
        header = stream.read(128).ljust(128, b"\0")
        stereo, bits = struct.unpack(">HH", header[12:16])
        (frames,) = struct.unpack(">I", header[26:30])
        return int(128 + frames * (2 if stereo else 1) * (bits // 8))
    if head[:7] == b"NIST_1A":
        header = stream.read(1024)
        fields = dict(re.findall(rb"(?m)^(\w+)\s+-i\s+(\d+)", header))
        keys = (b"sample_count", b"channel_count", b"sample_n_bytes")
        if keys[0] not in fields:
            return None
        count, channels, width = (int(fields.get(key, b"1")) for key in keys)
        return int(header[8:16].strip() or 1024) + count * channels * width
    return None
