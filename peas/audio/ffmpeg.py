"""Sound that libsndfile does not decode (m4a, mp4, webm, …), through an `ffmpeg` on the path."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from peas.errors import AudioError

ENDINGS = (".m4a", ".aac", ".mp4", ".mov", ".3gp", ".webm", ".mka", ".mkv", ".wma")
"""Names of sound files that need ffmpeg end in one of these, in either case."""

# Decoding is hundreds of times faster than real time: a process that takes longer hangs.
_SECONDS = 600
# With a limit of bytes ffmpeg silently stops a packet before or after it.
_PACKET = 1 << 20
# Messages of ffmpeg about truncated sources, even if its exit status is 0.
_CUT = ("prematurely", "moov atom not found", "corrupt input packet", "exhausted before END")


def container(head: bytes) -> str | None:
    """Name of a container that ffmpeg decodes and libsndfile does not; None for others.

    Args:
        head: The source's first twelve bytes.
    """
    if head[4:8] == b"ftyp":
        return "MPEG-4 (m4a, mp4)"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "Matroska (webm, mkv)"
    if head[:4] == b"0&\xb2u":
        return "ASF (wma)"
    # MPEG audio's frame mark, with the layer that only AAC has.
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return None


def to_wav(
    source: str | Path | bytes,
    kind: str,
    label: str,
    seconds: float | None = None,
    most_bytes: int | None = None,
) -> bytes:
    """Decode the first audio track of a source.

    Args:
        source: Path of a file, or the bytes of one.
        kind: Name of its container, for messages.
        label: Name of the clip in messages.
        seconds: How much of it is needed, from its beginning; None = all.
        most_bytes: Size of the result above which the source is refused; None = any.

    Returns:
        A WAV file of 32-bit floats, at the source's rate and with its channels.

    Raises:
        AudioError: There is no `ffmpeg`, it cannot decode the source, or it is too long.
    """
    program = shutil.which("ffmpeg")
    shown = "clip.m4a" if isinstance(source, bytes) else f'"{source}"'
    if program is None:
        raise AudioError(
            f"{label}: cannot be decoded, {kind} needs an `ffmpeg` on the path and there is none: "
            f"install one, or convert the clips elsewhere: ffmpeg -i {shown} clip.wav"
        )
    with tempfile.TemporaryDirectory() as folder:
        # Both through files: an MPEG-4 source may have its table of contents at its end, and the
        # header of a WAV file that was written into a pipe lacks the length.
        if isinstance(source, bytes):
            path = Path(folder, "source")
            path.write_bytes(source)
        else:
            path = Path(source).absolute()
        wav = Path(folder, "clip.wav")
        limit = [] if seconds is None else ["-t", f"{seconds:.6f}"]
        command = [program, "-nostdin", "-v", "error", "-xerror", "-threads", "1"]
        if most_bytes is not None:
            limit += ["-fs", str(most_bytes + 2 * _PACKET)]
        # With `file:` a colon in the name makes no protocol.
        command += ["-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32le", *limit]
        try:
            done = subprocess.run(
                [*command, "-f", "wav", "-y", str(wav)],
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise AudioError(
                f"{label}: cannot be decoded, {program} did not finish ({error}); try "
                f"ffmpeg -i {shown} clip.wav"
            ) from error
        message = done.stderr.decode(errors="replace").strip()
        cut = any(sign in message for sign in _CUT)
        if cut or done.returncode or not wav.is_file():
            raise AudioError(
                f"{label}: {'cut short' if cut else 'cannot be decoded'}, ffmpeg says: "
                f"{_first_line(message)}; copy or download it again, or try "
                f"ffmpeg -i {shown} clip.wav"
            )
        if most_bytes is not None and wav.stat().st_size > most_bytes + _PACKET:
            raise AudioError(
                f"{label}: has more sound than one clip may have (max_samples); cut it up: "
                f"ffmpeg -i {shown} -f segment -segment_time 600 clip%d.wav"
            )
        return wav.read_bytes()


def _first_line(message: str) -> str:
    """The first line, without the name of ffmpeg's module."""
    line = message.splitlines()[0] if message else "nothing"
    return line.rpartition("] ")[2].rstrip(".")
