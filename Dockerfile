# Two images: `gateway` (an engine elsewhere, by its URL) and `cpu` (the same with vLLM's CPU build inside).
#
#   docker build --target gateway --tag lora-gateway:0.1.0 .
#   docker build --target cpu --tag lora-gateway:0.1.0-cpu .
#
# For several gateways on one catalogue and object storage: --build-arg EXTRAS=s3,postgres (pyproject.toml names the extras).
#
# Needs BuildKit (DOCKER_BUILDKIT=1 on an old engine). Behind a proxy that signs for others, hand its certificates in:
# --secret id=ca,src=FILE; other indexes and wheel directories: --build-arg UV_DEFAULT_INDEX=…, UV_INDEX=…, UV_FIND_LINKS=…
ARG BASE=debian:12.12-slim

# ---- what both run on ----------------------------------------------------------------------------------------------
FROM ${BASE} AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
# /data and /reference last; /cache (compiled kernels, sockets) may be lost. Nothing else is written: the root can be read-only.
RUN useradd --uid 10001 --user-group --no-log-init --home-dir /cache --shell /usr/sbin/nologin gateway \
 && install -d -o 10001 -g 10001 -m 0755 /data /data/artefacts /reference \
 && install -d -o 10001 -g 10001 -m 0700 /cache
ENV PATH=/opt/gateway/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    NUMBA_CACHE_DIR=/cache/numba \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    VLLM_CACHE_ROOT=/cache/vllm \
    TMPDIR=/cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# ---- what is installed ---------------------------------------------------------------------------------------------
FROM base AS build
ARG UV_VERSION=0.13.9
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
# uv's own variables, where the builder sets them. TORCH_BACKEND=cpu finds torch without CUDA's libraries (0.2 GB, not
# 3); empty, torch comes from the indexes and wheel directories given.
ARG UV_DEFAULT_INDEX
ARG UV_INDEX
ARG UV_FIND_LINKS
ARG TORCH_BACKEND=cpu
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/gateway
RUN --mount=type=secret,id=ca --mount=type=cache,target=/cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca; fi \
 && export TMPDIR=/tmp \
 && python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --quiet "uv==${UV_VERSION}" \
 && python3 -m venv --without-pip /opt/gateway
WORKDIR /src
COPY requirements/cpu.txt requirements/overrides.txt requirements/excludes.txt requirements/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
 && export TMPDIR=/tmp UV_CACHE_DIR=/cache/uv \
 && /opt/uv/bin/uv pip install ${TORCH_BACKEND:+--torch-backend ${TORCH_BACKEND}} -c requirements/cpu.txt torch
COPY pyproject.toml README.md ./
COPY app app
ARG EXTRAS
RUN --mount=type=secret,id=ca --mount=type=cache,target=/cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
 && export TMPDIR=/tmp UV_CACHE_DIR=/cache/uv \
 && /opt/uv/bin/uv pip install --excludes requirements/excludes.txt -c requirements/cpu.txt ".${EXTRAS:+[${EXTRAS}]}" \
 && cd / && ln -s "$(/opt/gateway/bin/python -Ic 'import app.demo.assets as a; print(a.ASSETS)')" /opt/gateway/demo \
 && test -e /opt/gateway/demo/reference/reference.json

FROM build AS build-cpu
ARG EXTRAS
RUN --mount=type=secret,id=ca --mount=type=cache,target=/cache/uv \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi \
 && export TMPDIR=/tmp UV_CACHE_DIR=/cache/uv \
 && /opt/uv/bin/uv pip install --excludes requirements/excludes.txt --overrides requirements/overrides.txt \
      -c requirements/cpu.txt ".[cpu${EXTRAS:+,${EXTRAS}}]"

# ---- the gateway alone ---------------------------------------------------------------------------------------------
FROM base AS gateway
# A volume mounted here for the first time takes this owner (docker-compose.yml keeps its keys there).
RUN install -d -o 10001 -g 10001 -m 0755 /run/keys /run/keys/gateway /run/keys/operator /run/keys/metrics /run/keys/grafana
COPY --from=build /opt/gateway /opt/gateway
ENV GATEWAY_DATA=/data GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8080 GATEWAY_LOG=json
USER 10001:10001
WORKDIR /data
EXPOSE 8080
# The process answers; whether it can serve is what /ready says, and what an orchestrator should ask.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['GATEWAY_PORT']}/health\", timeout=4)"]
ENTRYPOINT ["lora-gateway"]
CMD ["serve"]

# ---- with the engine inside ----------------------------------------------------------------------------------------
FROM base AS cpu
# No compiler: the engine is told to compile nothing (app/load/embedded/command.py).
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
COPY --from=build-cpu /opt/gateway /opt/gateway
ENV GATEWAY_DATA=/data GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8080 GATEWAY_LOG=json
USER 10001:10001
WORKDIR /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['GATEWAY_PORT']}/health\", timeout=4)"]
ENTRYPOINT ["lora-gateway"]
CMD ["serve"]
