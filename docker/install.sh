#!/usr/bin/env bash
# Everything that an image runs while it is built, as named steps: `install.sh STEP`.
# The Dockerfiles hold no commands of their own, so that a clean root without an engine can run the
# very same ones (`make docker-check`). The steps stand in the order of how seldom they change.
set -euo pipefail

SOURCE=$(cd "$(dirname "$0")/.." && pwd)
VENV=/opt/venv

install_debian() {
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
    rm -rf /var/lib/apt/lists/*
}

# Debian's own Python is one of the two that peas supports; FFmpeg reads m4a and webm.
system() {
    install_debian ca-certificates python3 python3-venv ffmpeg
}

# torch.compile builds kernels with a compiler and Python's headers. NCCL finds InfiniBand only
# through these libraries; without them it takes Ethernet and says so in NCCL_DEBUG=INFO alone.
gpu() {
    install_debian g++ python3-dev libibverbs1 ibverbs-providers librdmacm1
}

# A job needs no rights in its image, and what it writes belongs outside.
user() {
    useradd --create-home --uid 1000 peas
}

# The packages that pyproject.toml names, without peas itself: this layer, six gigabytes, outlives
# every change of the code.
packages() {
    python3 -m venv "$VENV"
    "$VENV/bin/python" - "$SOURCE/pyproject.toml" >/tmp/requirements.txt <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["clap"]))
PYTHON
    "$VENV/bin/python" -m pip install --no-cache-dir --disable-pip-version-check \
        --constraint "$SOURCE/constraints-clap.txt" --requirement /tmp/requirements.txt
    rm /tmp/requirements.txt
}

peas() {
    "$VENV/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --no-deps "$SOURCE"
    rm -rf "$SOURCE/build" "$SOURCE"/*.egg-info
}

# As the user of the image: a package that cannot be imported or a folder that cannot be written
# stops the build, and not the first job.
check() {
    "$VENV/bin/python" -m pip check --disable-pip-version-check
    "$VENV/bin/peas" --version
    "$VENV/bin/peas" doctor
}

case "${1:-}" in
    system | gpu | user | packages | peas | check) "$1" ;;
    *)
        echo "usage: install.sh system | gpu | user | packages | peas | check" >&2
        exit 2
        ;;
esac
