"""Reads the Dockerfiles, and does in a plain root folder what an engine would do with them."""

import fnmatch
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = {name: ROOT / "docker" / f"{name}.Dockerfile" for name in ("cpu", "cuda")}


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile in their order, each with its arguments."""
    lines = file.read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    assert not any(line.endswith("\\") or line[0].isspace() for line in kept), "one line each"
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in kept)]


def ignored(path: str) -> bool:
    """Whether `.dockerignore` keeps a path out of the build: the last pattern that fits decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not line or line.startswith("#"):
            continue
        # A pattern means everything below it as well; after `**/` it may lie anywhere.
        parts = path.split("/")
        starts = range(len(parts)) if "**/" in line else (0,)
        names = ["/".join(parts[i:j]) for i in starts for j in range(i + 1, len(parts) + 1)]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            out = not line.startswith("!")
    return out


def copied(root: Path, words: str) -> None:
    """What COPY does."""
    *sources, target = words.split()
    for source in sources:
        there = root / target.lstrip("/")
        if target.endswith("/"):
            there /= Path(source).name
        there.parent.mkdir(parents=True, exist_ok=True)
        if not (ROOT / source).is_dir():
            shutil.copy(ROOT / source, there)
            continue
        for file in (ROOT / source).rglob("*"):
            if file.is_file() and not ignored(str(file.relative_to(ROOT))):
                place = there / file.relative_to(ROOT / source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)


@dataclass
class PipSettings:
    """How this machine's pip finds packages, to be handed into a root that knows nothing of it.

    Attributes:
        environment: The settings as variables.
        folders: Local folders that they name.
        certificate: File of the authorities that they trust.
    """

    environment: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    certificate: Path | None = None

    @classmethod
    def of_this_machine(cls) -> "PipSettings":
        """Asks pip itself."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            check=True,
        )
        keys = ("index-url", "extra-index-url", "find-links", "trusted-host", "no-index", "proxy")
        found = cls()
        # Variables stand before files in pip's list, and win over them.
        for line in reversed(listed.stdout.splitlines()):
            name, _, value = line.partition("=")
            key, value = name.rpartition(".")[2], value.strip("'")
            if key == "cert":
                found.certificate = Path(value)
            elif key in keys:
                found.environment[f"PIP_{key.upper().replace('-', '_')}"] = value
        words = [word for value in found.environment.values() for word in value.split()]
        paths = [word.removeprefix("file://") for word in words]
        # An index of the usual layout, `simple`, links to files that lie beside it.
        roots = [Path(path).parent if Path(path).name == "simple" else Path(path) for path in paths]
        found.folders = sorted(
            {str(path) for path in roots if path.is_absolute() and path.is_dir()}
        )
        for name in ("http_proxy", "https_proxy", "no_proxy"):
            if name in os.environ:
                found.environment[name] = os.environ[name]
        return found


class CleanRoot:
    """A root folder with nothing but Debian in it, in which commands run by chroot.

    Mounts live in a namespace of each command: none is left when it ends, however it ends.

    Args:
        folder: Where it is made.
        image: Name of the base image, `debian:SUITE-slim`.
        pip: Handed in, so that packages come from where this machine's come from.
    """

    def __init__(self, folder: Path, image: str, pip: PipSettings) -> None:
        self.folder = folder
        self.pip = pip
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.user, self.workdir = "root", "/"
        suite = image.removeprefix("debian:").removesuffix("-slim")
        self._unshared(f"debootstrap --variant=minbase {suite} {shlex.quote(str(folder))}")
        if pip.certificate is not None:
            shutil.copy(pip.certificate, folder / "opt" / "authorities.pem")
            pip.environment["PIP_CERT"] = "/opt/authorities.pem"
        for path in pip.folders:
            (folder / path.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _unshared(self, script: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", script]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1500,
        )

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as the user and in the folder that were set last."""
        root = shlex.quote(str(self.folder))
        mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        mounts += [f"mount --bind --read-only {path} {root}{path}" for path in self.pip.folders]
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        variables = {**self.env, **self.pip.environment, "HOME": home}
        given = shlex.join(f"{name}={value}" for name, value in variables.items())
        inside = shlex.quote(f"cd {self.workdir} && {command}")
        start = f"chroot --userspec={self.user} {root} /usr/bin/env -i {given} /bin/sh -c {inside}"
        return self._unshared("\n".join([*mounts, start]))

    def follow(self, word: str, rest: str) -> str:
        """Does one instruction; returns what it printed.

        Raises:
            AssertionError: A command failed.
        """
        if word == "COPY":
            copied(self.folder, rest)
        elif word == "ENV":
            name, _, value = rest.partition("=")
            self.env[name] = value
        elif word == "USER":
            self.user = rest
        elif word == "WORKDIR":
            self.workdir = rest
        elif word == "RUN":
            done = self.run(rest)
            assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-4000:]}"
            return done.stdout
        else:
            assert word == "ENTRYPOINT", word
        return ""

    def remove(self) -> None:
        """Takes the folder away, unless something is still mounted in it."""
        assert str(self.folder) not in Path("/proc/mounts").read_text()
        shutil.rmtree(self.folder)
