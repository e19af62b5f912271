# An image for the machines of a Ray cluster (docs/cluster.md): omniprep, the stores, and Ray with what its job API needs.
#   docker build -t omniprep .
# torch comes with CUDA's libraries, about 5 GB, which a build does not use. For nodes without a GPU give the address of
# PyTorch's index of CPU wheels ("Get Started" on pytorch.org):
#   docker build -t omniprep --build-arg TORCH_INDEX=https://... .
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/omniprep
# What is installed before the sources are copied stays in Docker's cache while they change.
COPY constraints.txt ./
RUN /opt/omniprep/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      torch torchvision "ray[default]"
COPY pyproject.toml README.md LICENSE ./
COPY omniprep ./omniprep
RUN /opt/omniprep/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      ".[s3,delta,iceberg,lance,metrics,report]"

FROM python:${PYTHON}-slim-bookworm
# The tools of the stage before stay behind. wget: KubeRay's probes ask Ray's agents with it.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 omniprep
COPY --from=build /opt/omniprep /opt/omniprep
ENV PATH=/opt/omniprep/bin:$PATH RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
# Decoders run on strangers' files: not as root (docs/security.md).
USER 1000
WORKDIR /home/omniprep
CMD ["omniprep", "--help"]
