"""The public data sets: addresses, checksums, published numbers of clips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A file to download.

    Attributes:
        url: Its address; the last part is its name.
        checksum: `sha256:...`; None if none is published.
        size: Its bytes; None if they are not fixed.
        into: Folder to unpack it into, from the root ("" = the root itself); None = it is no
            archive and stays in the root.
        strip: Leave out the single top folder of the archive.
        only: Names at the top of the archive that are unpacked; () = all.
    """

    url: str
    checksum: str | None = None
    size: int | None = None
    into: str | None = None
    strip: bool = False
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]

    def at(self, mirror: str | None) -> str:
        """Address on another server: its folder and the same file name."""
        return self.url if mirror is None else f"{mirror.rstrip('/')}/{self.name}"


# GitHub packs this archive anew for every request, so it has no fixed checksum or length.
ESC50 = Source(
    "https://github.com/karolpiczak/ESC-50/archive/master.zip",
    into="",
    strip=True,
    only=("audio", "meta", "LICENSE", "README.md"),
)
ESC50_CLIPS = 2000

# Main archives: SHA-256 from torchaudio 2.11 (datasets/speechcommands.py); length of 0.02 from
# TensorFlow Datasets (url_checksums/speech_commands.txt), which has the same SHA-256.
# Length of 0.01 and all of its test set: Hugging Face datasets (superb/dataset_infos.json, `ks`).
# Test set of 0.02: TensorFlow Datasets, same file as above.
_TENSORFLOW = "http://download.tensorflow.org/data"
SPEECH_COMMANDS = {
    "0.01": Source(
        f"{_TENSORFLOW}/speech_commands_v0.01.tar.gz",
        "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
        1_489_096_277,
        into="",
    ),
    "0.02": Source(
        f"{_TENSORFLOW}/speech_commands_v0.02.tar.gz",
        "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        2_428_923_189,
        into="",
    ),
}
SPEECH_COMMANDS_TEST = {
    "0.01": Source(
        f"{_TENSORFLOW}/speech_commands_test_set_v0.01.tar.gz",
        "sha256:baa084f6b62c91de660ff0588ae4dfc4e4d534aa99ac0e5f406cba75836cbd00",
        71_271_436,
        into="speech_commands_test_set_v0.01",
    ),
    "0.02": Source(
        f"{_TENSORFLOW}/speech_commands_test_set_v0.02.tar.gz",
        "sha256:cc2a00c1147c2254e9be3fa0f779d8c17421dc349b86366567a8edfa9acd51df",
        112_563_277,
        into="speech_commands_test_set_v0.02",
    ),
}
# Clips of the splits, with recordings of noise: Warden 2018, the official lists of 0.02 (9,981 and
# 11,005), SUPERB for 0.01 (51,088 and 6,798), Hugging Face datasets for the test archives.
SPEECH_COMMANDS_CLIPS = {
    "v2-35": {"train": 84_843, "validation": 9_981, "test": 11_005},
    "v2-12": {"train": 84_849, "validation": 9_987, "test": 4_890},
    "v1-12": {"train": 51_094, "validation": 6_804, "test": 3_081},
}

# SHA-256: torchaudio 2.11 (datasets/librispeech.py). Lengths: TensorFlow Datasets
# (url_checksums/librispeech.txt), which has the same SHA-256. Everything lies in `LibriSpeech/`.
_OPENSLR = "https://www.openslr.org/resources/12"
_LIBRISPEECH_FILES = {
    "train-clean-100": (
        6_387_309_499,
        "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    ),
    "train-clean-360": (
        23_049_477_885,
        "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    ),
    "train-other-500": (
        30_593_501_606,
        "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    ),
    "dev-clean": (
        337_926_286,
        "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    ),
    "dev-other": (
        314_305_928,
        "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    ),
    "test-clean": (
        346_663_984,
        "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    ),
    "test-other": (
        328_757_843,
        "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    ),
}
LIBRISPEECH = {
    subset: Source(f"{_OPENSLR}/{subset}.tar.gz", f"sha256:{digest}", size, into="", strip=True)
    for subset, (size, digest) in _LIBRISPEECH_FILES.items()
}
LIBRISPEECH_960 = ("train-clean-100", "train-clean-360", "train-other-500")
"""The 960 hours of pretraining."""
# Utterances: the data set card of Hugging Face's librispeech_asr, configuration `all`.
LIBRISPEECH_CLIPS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}

# Addresses: research.google.com/audioset/download.html. SHA-256 and lengths of the segments:
# TensorFlow Datasets (audio/audioset/checksums.tsv). The label table has none; peas ships its own.
_AUDIOSET = "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
AUDIOSET = (
    Source(
        f"{_AUDIOSET}/balanced_train_segments.csv",
        "sha256:3b83e5ff9ed72cfda37d4e36ce08250e107c1ea70f109f6ab6668ac200db5e94",
        1_211_931,
    ),
    Source(
        f"{_AUDIOSET}/unbalanced_train_segments.csv",
        "sha256:bb2dfd5e4f1ced39db9480633c510f813d7899f4b7472aa83a411b4a43a12698",
        101_468_408,
    ),
    Source(
        f"{_AUDIOSET}/eval_segments.csv",
        "sha256:f7055f53935f70e74e39494a5c8c4c78f1700fce275028bd36e31186f33d45db",
        1_143_389,
    ),
    Source(f"{_AUDIOSET}/class_labels_indices.csv"),
)
