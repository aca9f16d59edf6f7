#!/usr/bin/env bash
# make/push.sh gcp|aws|azure: build the image if it isn't this commit's, push it to the cloud's registry, and print its
# digest and how to run it there. Settings (launch/registries.env or the environment): GCP_REGISTRY, AWS_REGISTRY,
# AZURE_REGISTRY, BATON_STORE; and from make: FLAVOUR, IMAGE, TAG, JOB.
#
# The cloud's own tool gives a token that lasts an hour or so. It goes to docker by a pipe, is kept in a folder that
# only this script knows, and is deleted with it: no argument, no variable and no ~/.docker/config.json ever holds it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=make/docker.sh
. make/docker.sh
# shellcheck source=make/settings.sh
. make/settings.sh

cloud=${1:-}
read_settings
: "${FLAVOUR:=cuda}" "${IMAGE:=baton:$FLAVOUR}" "${JOB:=cifar10}"
: "${TAG:=$FLAVOUR}"
[[ $TAG =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] || die "TAG=$TAG: a tag has letters, digits, '.', '_' and '-', for example TAG=v1"
# whoever has no store yet gets a line to fill in
case $cloud in
    gcp)
        want GCP_REGISTRY europe-west4-docker.pkg.dev/PROJECT/baton \
            "gcloud artifacts repositories create baton --repository-format=docker --location=europe-west4"
        want_tool gcloud
        repository=$GCP_REGISTRY/baton store=gs://BUCKET/runs grace=25
        ;;
    aws)
        want AWS_REGISTRY 123456789012.dkr.ecr.eu-west-1.amazonaws.com \
            "aws ecr create-repository --repository-name baton --region eu-west-1"
        [[ $AWS_REGISTRY != *.dkr.ecr.*.amazonaws.com* ]] || AWS_REGION=$(cut -d. -f4 <<<"$AWS_REGISTRY")
        want AWS_REGION eu-west-1
        want_tool aws
        repository=$AWS_REGISTRY/baton store=s3://BUCKET/runs grace=110
        ;;
    azure)
        want AZURE_REGISTRY NAME.azurecr.io "az acr create --name NAME --resource-group GROUP --sku Basic"
        want_tool az
        repository=$AZURE_REGISTRY/baton store=az://ACCOUNT/CONTAINER/runs grace=25
        ;;
    *) die "usage: make push-gcp, make push-aws or make push-azure" ;;
esac
[[ $repository != *://* ]] || die "the registry ${repository%/baton} is written without a scheme, for example REGISTRY_HOST/PROJECT"
host=${repository%%/*}

docker=${DOCKER:-$(find_docker)}
config=$(mktemp -d)
trap 'rm -rf "$config"' EXIT
# the daemon that the user's own settings choose (Docker Desktop, rootless): with other settings it must be named
if [[ -z ${DOCKER_HOST:-} ]]; then
    daemon=$("$docker" context inspect -f '{{.Endpoints.docker.Host}}' 2>/dev/null || true)
    [[ -z $daemon ]] || export DOCKER_HOST=$daemon
fi

build_if_needed() {
    local commit built
    commit=$(revision)
    [[ -n $commit ]] || die "this folder is no git repository: a pushed image is named after its commit"
    built=$("$docker" image inspect -f '{{index .Config.Labels "org.opencontainers.image.revision"}}' "$IMAGE" 2>/dev/null || true)
    if [[ $built == "$commit" && $commit != *-dirty ]]; then
        echo "$IMAGE is this commit's already"
    else
        FLAVOUR=$FLAVOUR IMAGE=$IMAGE DOCKER=$docker make/image.sh
    fi
    [[ $commit != *-dirty ]] || echo "the tree has changes that no commit holds: pushed as -dirty, which nobody can build again" >&2
    tag=${commit:0:12}${commit:40}-$FLAVOUR
}

token() {
    case $cloud in
        gcp) gcloud auth print-access-token ;;
        aws) aws ecr get-login-password --region "$AWS_REGION" ;;
        # a token of the registry, which `az acr login` would else hand to a docker of its own choice
        azure) az acr login --name "${host%%.*}" --expose-token --query accessToken --output tsv --only-show-errors ;;
    esac
}

log_in() {
    local user again
    case $cloud in
        gcp) user=oauth2accesstoken again="gcloud auth login" ;;
        aws) user=AWS again="aws sso login (or aws configure, with keys)" ;;
        azure) user=00000000-0000-0000-0000-000000000000 again="az login" ;; # the name that goes with a token
    esac
    # what docker says of where it keeps the token is told only when it fails
    token | "$docker" --config "$config" login --username "$user" --password-stdin "$host" >"$config/said" 2>&1 || {
        cat "$config/said" >&2
        die "$host did not let you in: $again, and see that you may write to $repository"
    }
}

push() {
    "$docker" tag "$IMAGE" "$repository:$1"
    "$docker" --config "$config" push "$repository:$1" | tee "$config/pushed" ||
        die "$repository did not take it: does it exist, and may you write to it? launch/registries.env.example says how to make one"
    digest=$(sed -n 's/.*digest: \(sha256:[0-9a-f]*\) .*/\1/p' "$config/pushed")
}

log_in # before what takes minutes
build_if_needed
push "$tag"
[[ $TAG == "$tag" ]] || push "$TAG"

# By its digest: a tag may come to mean another image. On AWS containers reach the instance's metadata, and with it the
# role and the notices, on the host's network or with a hop limit of 2.
run=(docker run -d --name baton --stop-timeout "$grace")
[[ $cloud != aws ]] || run+=(--network host)
[[ $FLAVOUR != cuda ]] || run+=("\$(test -e /dev/nvidiactl && echo --gpus all)")
run+=(-v /var/lib/baton/halt:/halt -e "BATON_STOP_GRACE=$grace" -e "BATON_STORE=${BATON_STORE:-$store}")
echo
echo "digest: $digest"
echo "tags:   $tag $TAG"
# again: the container that ended has the name; one that still runs keeps it, and is not killed
echo "run it: docker rm baton 2>/dev/null; ${run[*]} $repository@$digest $JOB"
