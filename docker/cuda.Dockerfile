# peas for GPUs. The wheels of torch bring CUDA, cuDNN and NCCL, the host's driver comes in with
# NVIDIA's container toolkit: an image of NVIDIA's would hold all of that a second time.
FROM debian:bookworm-slim

COPY docker/install.sh /opt/peas/docker/install.sh
RUN /opt/peas/docker/install.sh system
RUN /opt/peas/docker/install.sh gpu
RUN /opt/peas/docker/install.sh user

COPY pyproject.toml constraints-clap.txt /opt/peas/
RUN /opt/peas/docker/install.sh packages

COPY LICENSE README.md /opt/peas/
COPY configs /opt/peas/configs
COPY peas /opt/peas/peas
RUN /opt/peas/docker/install.sh peas

ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
# What NVIDIA's images set, and their toolkit asks for: without it no GPU is seen.
ENV NVIDIA_VISIBLE_DEVICES=all
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER peas
WORKDIR /home/peas
RUN /opt/peas/docker/install.sh check
ENTRYPOINT ["peas"]
