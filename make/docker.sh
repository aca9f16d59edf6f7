#!/usr/bin/env bash
# Sourced by the scripts that build, push and start: which docker, which revision, and how to refuse.

die() {
    echo "$*" >&2
    exit 78
}

# The first docker on the path that has BuildKit: a newer client without its buildx plug-in has not.
find_docker() {
    local candidate
    while read -r candidate; do
        if DOCKER_BUILDKIT=1 "$candidate" build --help 2>/dev/null | grep -q -e --secret; then
            echo "$candidate"
            return
        fi
    done < <(type -ap docker)
    die "No docker with BuildKit on the path (a docker client newer than 22 also wants its buildx plug-in)."
}

# revision: the commit, with -dirty where the tree isn't the commit's.
revision() {
    git rev-parse --verify -q HEAD >/dev/null || return 0
    local dirty=""
    [[ -z $(git status --porcelain) ]] || dirty=-dirty
    echo "$(git rev-parse HEAD)$dirty"
}
