# peas without what only a GPU needs: the compiler and InfiniBand of cuda.Dockerfile. Not small: torch
# is the same CUDA build in both, since torchaudio's wheel refuses to import beside a CPU-only torch.
# Plain Debian is enough, because the wheels bring CUDA with them.
FROM debian:bookworm-slim

COPY docker/install.sh /opt/peas/docker/install.sh
RUN /opt/peas/docker/install.sh system
RUN /opt/peas/docker/install.sh user

COPY pyproject.toml constraints-clap.txt /opt/peas/
RUN /opt/peas/docker/install.sh packages

COPY LICENSE README.md /opt/peas/
COPY configs /opt/peas/configs
COPY peas /opt/peas/peas
RUN /opt/peas/docker/install.sh peas

ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
USER peas
WORKDIR /home/peas
RUN /opt/peas/docker/install.sh check
ENTRYPOINT ["peas"]
