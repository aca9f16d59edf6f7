#!/usr/bin/env bash
# make/image.sh: lay out in .build/ what the image needs and git doesn't hold, then build it. `make image` sets:
#   FLAVOUR     cuda or cpu
#   BASE_IMAGE  what to build on; empty for the flavour's own
#   CIFAR10     archive, folder, packed.safetensors, address, or `synthetic`; empty for what `make cifar10` packed
#   WEIGHTS     pretrained weights to bake in, JOB:MODEL JOB:MODEL ...; what lies in weights/ is taken from there, and
#               imagenet's is fetched otherwise
#   IMAGE       the tag
# Your pip settings and certificates go in as build secrets: no layer and no image history holds them.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=make/docker.sh
. make/docker.sh

# A hard link where one can be made (the build context then costs no disk), else a copy; of the file, where $1 is a link.
lay() {
    ln -fL "$1" "$2" 2>/dev/null || cp -f "$1" "$2"
}

# A folder that `data cifar10` takes, as what the Dockerfile's takes too. A tar of the binary archive's files would pass for
# a damaged download of it: they stay a folder. A tree of pictures is better one file, whose bytes alone decide what is
# packed; no links may be in it, so they are followed, hard ones by the copy.
lay_folder() {
    local first file
    first=$(first_file "$CIFAR10/data_batch_1.bin" "$CIFAR10"/*/data_batch_1.bin)
    if [[ -n $first ]]; then
        mkdir .build/source/cifar-10-batches-bin
        for file in "$(dirname "$first")"/*.bin; do
            lay "$file" ".build/source/cifar-10-batches-bin/$(basename "$file")"
        done
        return
    fi
    first=$(first_file "$CIFAR10/data_batch_1" "$CIFAR10"/*/data_batch_1)
    [[ -z $first ]] || die "CIFAR10: $first is a pickle, which can't be checked once it is extracted; give the archive itself, cifar-10-python.tar.gz"
    mkdir .build/pictures
    cp -RLp "$CIFAR10/." .build/pictures || die "CIFAR10: $CIFAR10 can't be copied whole"
    tar -C .build/pictures -cf .build/source/cifar10.tar .
    rm -rf .build/pictures
}

# The source in .build/source/, from where the Dockerfile packs it; an address is left to the build itself.
lay_source() {
    mkdir -p .build/source
    local packed=data/cifar10/packed.safetensors
    if [[ -z $CIFAR10 && -f $packed ]]; then
        CIFAR10=$packed
    elif [[ -f $CIFAR10/packed.safetensors ]]; then
        CIFAR10=$CIFAR10/packed.safetensors
    fi
    if [[ -f $CIFAR10 ]]; then
        lay "$CIFAR10" ".build/source/$(basename "$CIFAR10")"
    elif [[ -d $CIFAR10 ]]; then
        lay_folder
    else
        build+=(--build-arg "CIFAR10=$CIFAR10")
    fi
}

# Of a model's folder, what a run reads (trainer/pretrained.py): a hub's repository holds the weights in five formats.
FILES="config.json model.safetensors tokenizer.json tokenizer_config.json"

# Weights that are here already, as files or folders in .build/weights/; the build fetches the others.
lay_weights() {
    mkdir -p .build/weights
    local wanted model file
    for wanted in $WEIGHTS; do
        model=${wanted#*:}
        [[ $wanted == *:* ]] || die "WEIGHTS: write JOB:MODEL, for example imagenet:resnet18, not $wanted"
        mkdir -p "$(dirname ".build/weights/$model")" # a name may have a folder in it: google/bert_uncased
        if [[ -d weights/$model ]]; then
            mkdir -p ".build/weights/$model"
            for file in $FILES; do
                [[ ! -f weights/$model/$file ]] || lay "weights/$model/$file" ".build/weights/$model/$file"
            done
        elif [[ -f weights/$model.safetensors ]]; then
            lay "weights/$model.safetensors" ".build/weights/$model.safetensors"
        elif [[ $wanted == bert:* ]]; then # now, not after minutes of building
            die "WEIGHTS: weights/$model isn't there. Get it: hf download $model $FILES --local-dir weights/$model"
        fi
    done
    build+=(--build-arg "WEIGHTS=$WEIGHTS")
}

# Wheels of CPU torch that lie in a folder which pip is told to look in; a served index needs nothing laid out.
lay_wheels() {
    mkdir -p .build/wheels
    local folder wheel
    for folder in $(pip_setting find-links); do
        for wheel in "${folder#file://}"/torch-*+cpu-*.whl; do
            [[ ! -f $wheel ]] || lay "$wheel" ".build/wheels/$(basename "$wheel")"
        done
    done
}

pip_setting() {
    local value
    value=PIP_$(tr 'a-z-' 'A-Z_' <<<"$1")
    if [[ -n ${!value:-} ]]; then
        echo "${!value}"
    else
        python3 -m pip config get "global.$1" 2>/dev/null || true
    fi
}

first_file() {
    local path
    for path in "$@"; do
        if [[ -s $path ]]; then
            echo "$path"
            return
        fi
    done
}

secrets() {
    local ca conf
    ca=$(first_file "${PIP_CERT:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt /etc/ssl/cert.pem)
    conf=$(first_file "${PIP_CONFIG_FILE:-}" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" ~/.pip/pip.conf /etc/pip.conf)
    [[ -z $ca ]] || build+=(--secret "id=ca,src=$ca")
    [[ -z $conf ]] || build+=(--secret "id=pip_conf,src=$conf")
    [[ -z ${PIP_INDEX_URL:-} ]] || build+=(--secret "id=pip_index_url,env=PIP_INDEX_URL")
    [[ -z ${PIP_EXTRA_INDEX_URL:-} ]] || build+=(--secret "id=pip_extra_index_url,env=PIP_EXTRA_INDEX_URL")
}

stamp_revision() {
    local revision source
    revision=$(revision)
    [[ -n $revision ]] || return 0
    source=$(git remote get-url origin 2>/dev/null || true)
    [[ $source == https://* && $source != *@* ]] || source="" # no local folders, no tokens
    build+=(--build-arg "REVISION=$revision" --build-arg "CREATED=$(git show -s --format=%cI HEAD)"
        --build-arg "SOURCE=$source")
}

: "${FLAVOUR:=cuda}" "${BASE_IMAGE:=}" "${CIFAR10:=}" "${WEIGHTS:=}" "${IMAGE:=baton:$FLAVOUR}"
case $FLAVOUR in
    cuda) : "${BASE_IMAGE:=ubuntu:24.04}" ;;
    cpu) : "${BASE_IMAGE:=debian:bookworm-slim}" ;; # its Python 3.11 is the one that requirements-cpu.lock has a wheel for
    *) die "FLAVOUR is cuda or cpu, not $FLAVOUR" ;;
esac
docker=${DOCKER:-$(find_docker)}
build=(--build-arg "BASE_IMAGE=$BASE_IMAGE" --build-arg "FLAVOUR=$FLAVOUR" -t "$IMAGE")
rm -rf .build/source .build/pictures .build/weights .build/wheels
lay_source
lay_weights
[[ $FLAVOUR == cuda ]] || lay_wheels
secrets
stamp_revision
# The whole output, not a moving picture: the build's own words, such as what is missing, stay to be read.
DOCKER_BUILDKIT=1 "$docker" build --progress plain "${build[@]}" .
printf '%s: ' "$IMAGE" # not by its inspection: of an image with several tags that tells the first one
"$docker" image inspect -f '{{.Size}} bytes, {{len .RootFS.Layers}} layers' "$IMAGE"
