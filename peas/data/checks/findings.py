"""Kinds of findings in a data set, what each means, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from peas.data.checks.clips import CLIPPED_RUN, CLIPPED_SHARE
from peas.data.columns import Strings
from peas.data.module import RATE

Severity = Literal["error", "warning"]


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: An `error` spoils a result or stops training; a `warning` may be as it should.
        title: What it is, in a few words that follow "3 clips".
        advice: What to do about it.
    """

    severity: Severity
    title: str
    advice: str


KINDS = {
    "tables": Kind("error", "in the tables of the set", "correct what the message names"),
    "missing": Kind(
        "error",
        "listed without sound",
        "copy or fetch the files again, or remove their rows",
    ),
    "undecodable": Kind(
        "error",
        "cannot be decoded",
        "copy or fetch the files again; on_error: skip trains without them",
    ),
    "truncated": Kind(
        "error",
        "cut short",
        "copy or fetch the files again; other programs read them without a word",
    ),
    "nan": Kind(
        "error",
        "with NaN, infinite or huge samples",
        "export them again from their source",
    ),
    "listed_twice": Kind("error", "listed more than once", "remove the rows that are too many"),
    "shared_recording": Kind(
        "error",
        "of recordings that are in several parts",
        "move all clips of a recording into one part: a test must not reward remembering it",
    ),
    "shared_audio": Kind(
        "error",
        "with the same sound in several parts",
        "keep one of the copies: a test must not reward remembering it",
    ),
    "against_recording": Kind(
        "error",
        "of recordings that are in both sets",
        "leave them out of pretraining: a test must not reward remembering them",
    ),
    "against_audio": Kind(
        "error",
        "with the same sound in both sets",
        "leave them out of pretraining: a test must not reward remembering them",
    ),
    "short": Kind(
        "warning",
        "shorter than one frame of 25 ms",
        "see whether they should be; they are padded with zeros to one frame",
    ),
    "silent": Kind(
        "warning", "silent", "see whether they should be: a label may promise what is not there"
    ),
    "clipped": Kind(
        "warning",
        f"clipped (at least {CLIPPED_SHARE:.1%} of the samples in runs of {CLIPPED_RUN} or more "
        "at full scale)",
        "nothing brings back what was cut off; look for better copies if they are many",
    ),
    "rate": Kind(
        "warning",
        f"of another rate than {RATE // 1000} kHz",
        "they are resampled and remembered; from a lower rate, the top of the spectrum is empty",
    ),
    "channels": Kind(
        "warning",
        "of several channels",
        "the argument channels says what becomes of them: mean, or first",
    ),
    "doubled_audio": Kind(
        "warning", "with the same sound within one part", "keep one of the copies, or leave it so"
    ),
    "shared_speaker": Kind(
        "warning",
        "of speakers who are in several parts",
        "split by speaker if results are to tell how new speakers are heard",
    ),
    "against_speaker": Kind(
        "warning",
        "of speakers who are in both sets",
        "leave them out of pretraining if results are to tell how new speakers are heard",
    ),
    "against_unread": Kind(
        "warning",
        "of the other set that could not be compared",
        "verify the other set by itself first",
    ),
    "empty_class": Kind(
        "warning",
        "without a clip in a part",
        "see whether the split should have them; metrics can say nothing about them",
    ),
    "one_class": Kind(
        "warning",
        "that is the only one of all clips",
        "a classifier learns nothing from one class: see whether ROOT is one level too high",
    ),
    "single_clip_class": Kind(
        "warning", "with a single clip", "one clip cannot be both trained on and tested"
    ),
}
"""Every kind of finding, worst first."""


@dataclass(frozen=True)
class Finding:
    """One kind of finding in a set, with everything that it concerns. N clips or classes.

    Attributes:
        kind: Key of `KINDS`.
        names: `[N]` ids of the clips, or names of classes.
        places: `[N]` part, or data set, that each belongs to; empty where there is none.
        shared: `[N]` what each has in common with another one: a recording, a speaker, a hash.
            Equal ones stand together. Empty where nothing is shared.
        messages: What can be said of a few of them.
        unit: What `names` holds.
    """

    kind: str
    names: Strings
    places: Strings = field(default_factory=lambda: Strings([]))
    shared: Strings = field(default_factory=lambda: Strings([]))
    messages: Sequence[str] = ()
    unit: Literal["clips", "classes", "faults"] = "clips"

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.kind].severity

    @property
    def count(self) -> int:
        """Number of clips, of different classes, or of faults."""
        if self.unit == "classes":
            return len(set(self.names))
        return len(self.messages) if self.unit == "faults" else len(self.names)


def of_tables(messages: Sequence[str]) -> Finding:
    """The finding that tables cannot be read or contradict themselves."""
    return Finding("tables", Strings([]), messages=messages, unit="faults")
