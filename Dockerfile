# Baton's image. `make image` builds it with all that can be set; with Docker alone:
#     DOCKER_BUILDKIT=1 docker build --build-arg CIFAR10=synthetic -t baton .
# Needs BuildKit of Docker 20.10 or newer, and no Dockerfile frontend from a registry.
# On the same base the same tree gives the same layers of dependencies, data and code, whoever builds them, and a push
# sends only those that changed. So every time is set to the epoch and byte code refers to its source by hash; and what a
# layer adds is laid out with its parent folders under /layer, because COPY gives folders that it makes the time of day.

# In releases by digest: ubuntu:24.04@sha256:... Any Debian or Ubuntu with Python 3.11 or newer will do.
ARG BASE_IMAGE=ubuntu:24.04
# cuda: torch for NVIDIA GPUs, which runs on CPUs too. cpu: a quarter of the size, no torchvision, Python 3.11.
ARG FLAVOUR=cuda


FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# tini is process 1: it passes signals on and reaps what is left over. A user by number, so that Kubernetes' runAsNonRoot
# can tell; any other --user works as well. Ubuntu has a 1000 already.
# hadolint ignore=DL3008
RUN if ! command -v python3 || ! command -v tini || ! test -s /etc/ssl/certs/ca-certificates.crt; then \
        apt-get update; \
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 tini; \
        rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*; \
    fi; \
    sed -i '/:1000:/d' /etc/passwd /etc/group; \
    echo 'baton:x:1000:1000:Baton:/tmp/baton-cache:/usr/sbin/nologin' >> /etc/passwd; \
    echo 'baton:x:1000:' >> /etc/group; \
    mkdir -m 1777 /halt /store


FROM scratch AS lock-cuda
COPY requirements.lock /requirements.lock

FROM scratch AS lock-cpu
COPY requirements-cpu.lock /requirements.lock
COPY requirements-cpu.lock .build/wheels*/*.whl /wheels/

# hadolint ignore=DL3006
FROM lock-${FLAVOUR} AS lock


FROM base AS deps
# hadolint ignore=DL3008,DL3009
RUN if ! python3 -c 'import ensurepip'; then \
        apt-get update; \
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv; \
    fi
COPY requirements-uv.lock /build/
COPY make/venv.sh /build/make/
COPY --from=lock / /build/
# The host's certificates and pip settings come as secrets, each of which may be missing, and stay out of every layer.
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=pip_index_url --mount=type=secret,id=pip_extra_index_url \
    setting() { if [ -s "/run/secrets/$2" ]; then export "$1=${3:-$(cat "/run/secrets/$2")}"; fi; }; \
    setting PIP_CERT ca /run/secrets/ca; \
    setting PIP_INDEX_URL pip_index_url; \
    setting PIP_EXTRA_INDEX_URL pip_extra_index_url; \
    export PIP_FIND_LINKS=/build/wheels PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1; \
    export UV_COMPILE_BYTECODE=0 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1; \
    mkdir -p /build/wheels; \
    /build/make/venv.sh /opt/venv /build/requirements.lock; \
    /opt/venv/bin/python -m pip uninstall -qy uv pip; \
    find /opt/venv -name __pycache__ -prune -exec rm -rf {} +; \
    : 'uv notes when it unpacked a local wheel'; \
    find /opt/venv -name uv_cache.json -delete; \
    find /opt/venv -name RECORD -exec sed -i '/uv_cache.json/d' {} +; \
    : 'some packages carry files that only newer Pythons can read'; \
    /opt/venv/bin/python -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash /opt/venv/lib || true; \
    mkdir -p /layer/opt; \
    mv /opt/venv /layer/opt/venv; \
    ln -s /layer/opt/venv /opt/venv; \
    find /layer -exec touch -h -d @0 {} +


FROM deps AS data
COPY entrypoint.py /app/
COPY trainer /app/trainer
COPY storage /app/storage
COPY watchers /app/watchers
COPY console /app/console
COPY requirements-uv.lock .build/source*/ /source/
ARG CIFAR10=
# Packed once for each source and packing code, in a cache of the builder's: code that changed elsewhere costs no packing.
# hadolint ignore=DL4006
RUN --mount=type=secret,id=ca --mount=type=cache,target=/packed \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    rm /source/requirements-uv.lock; \
    given=$(find /source -mindepth 1 -maxdepth 1); \
    if [ -z "$given$CIFAR10" ]; then \
        echo 'The image bakes in CIFAR-10: say where it comes from. make image CIFAR10=path-or-address, or'; \
        echo 'docker build --build-arg CIFAR10=address. CIFAR10=synthetic makes a stand-in that needs no download.'; \
        exit 78; \
    fi; \
    packed=/packed/$( (echo "$CIFAR10"; find /source /app/trainer/data /build/requirements.lock -type f | sort | \
        xargs -r cat) | sha256sum | cut -c 1-64); \
    if [ "${given##*/}" = packed.safetensors ]; then \
        packed=/source; \
    elif ! [ -s "$packed/packed.safetensors" ]; then \
        /opt/venv/bin/python /app/entrypoint.py data cifar10 --source "${given:-$CIFAR10}" --out "$packed"; \
    fi; \
    mkdir -p /layer/data/app/data/cifar10; \
    cp "$packed/packed.safetensors" /layer/data/app/data/cifar10/; \
    chmod -R a+rX /layer/data/app; \
    find /layer/data/app -exec touch -h -d @0 {} +


FROM deps AS weights
COPY entrypoint.py /app/
COPY trainer /app/trainer
COPY storage /app/storage
COPY watchers /app/watchers
COPY console /app/console
COPY requirements-uv.lock .build/weights*/ /source/
ARG WEIGHTS=
# JOB:MODEL, any number of them: from what `make image` found in weights/, else fetched. Both are checked here.
# hadolint ignore=DL4006
RUN --mount=type=secret,id=ca --mount=type=cache,target=/weights \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca; fi; \
    mkdir -p /layer/weights/app/weights; \
    weights() { /opt/venv/bin/python /app/entrypoint.py weights "${wanted%%:*}" --model "$model" --out "$@"; }; \
    for wanted in $WEIGHTS; do \
        model=${wanted#*:}; \
        if ! [ -e "/source/$model" ] && ! [ -e "/source/$model.safetensors" ]; then \
            weights /weights --check > /dev/null || weights /weights; \
            cp "/weights/$model.safetensors" /source/; \
        fi; \
        weights /source --check; \
        : 'a name may have a folder in it: google/bert_uncased'; \
        mkdir -p "$(dirname "/layer/weights/app/weights/$model")"; \
        for kept in "$model" "$model.safetensors"; do \
            if [ -e "/source/$kept" ]; then cp -r "/source/$kept" "$(dirname "/layer/weights/app/weights/$kept")/"; fi; \
        done; \
    done; \
    : 'what doctor holds them to'; \
    if [ -n "$WEIGHTS" ]; then \
        find /layer/weights/app/weights -type f -exec sha256sum {} + | sed 's#/layer/weights/app/weights/##' | \
            LC_ALL=C sort -k 2 > /source/SHA256SUMS; \
        mv /source/SHA256SUMS /layer/weights/app/weights/; \
    fi; \
    chmod -R a+rX /layer/weights/app; \
    find /layer/weights/app -exec touch -h -d @0 {} +


FROM deps AS app
COPY entrypoint.py /app/
COPY trainer /app/trainer
COPY storage /app/storage
COPY watchers /app/watchers
COPY console /app/console
RUN PYTHONHASHSEED=0 /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app; \
    chmod -R u=rwX,go=rX /app; \
    mkdir -p /layer/below/app /layer/code; \
    mv /app/storage /app/watchers /app/console /layer/below/app/; \
    mv /app /layer/code/app; \
    find /layer/below /layer/code -exec touch -h -d @0 {} +


# From the part that changes least to the one that changes most. The code in two, so that a change sends about half of it.
FROM base
COPY --from=deps /layer/ /
COPY --from=data /layer/data/ /
COPY --from=weights /layer/weights/ /
COPY --from=app /layer/below/ /
COPY --from=app /layer/code/ /
# All that libraries write for themselves goes to one place, which --read-only --tmpfs /tmp leaves writable. USER and
# LOGNAME: torch asks for the user's name, and any number given with --user has none.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=baton \
    LOGNAME=baton \
    HOME=/tmp/baton-cache \
    XDG_CACHE_HOME=/tmp/baton-cache \
    HF_HOME=/tmp/baton-cache/huggingface \
    TORCH_HOME=/tmp/baton-cache/torch \
    MPLCONFIGDIR=/tmp/baton-cache/matplotlib \
    BATON_STORE=file:///store
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/venv/bin/python", "/app/entrypoint.py"]
ARG REVISION=unknown
ARG CREATED=
ARG SOURCE=
ENV BATON_REVISION=${REVISION}
LABEL org.opencontainers.image.title="Baton" \
      org.opencontainers.image.description="Trains a model on cheap evictable machines and never loses its place." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
