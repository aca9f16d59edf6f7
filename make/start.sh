#!/usr/bin/env bash
# make/start.sh gcp|aws|azure: show the command that starts a spot VM with the image on it; with GO=1 run it. Where the
# VM is there already, stopped by an eviction, it is started again. Settings (launch/registries.env or the environment):
# those that launch/registries.env.example lists; and from make:
#   JOB        job and its options (cifar10)         NAME       the VM's name (baton)
#   TAG        the image's tag (the flavour)         MAX_HOURS  hours that the VM may be on in all (24)
#   BATON_RUN  the run's name (the job's)            GPU=1      a machine with one
#   OUT        folder for what the VM is told (.build/start)
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=make/docker.sh
. make/docker.sh
# shellcheck source=make/settings.sh
. make/settings.sh

cloud=${1:-}
[[ $cloud == gcp || $cloud == aws || $cloud == azure ]] || die "usage: make start-gcp, make start-aws or make start-azure"
read_settings
: "${FLAVOUR:=cuda}" "${GO:=}" "${GPU:=}" "${NAME:=baton}" "${JOB:=cifar10}" "${MAX_HOURS:=24}"
: "${TAG:=$FLAVOUR}" "${BATON_RUN:=${JOB%% *}}"
want BATON_STORE gs://BUCKET/runs "docs/stores.md"
[[ $MAX_HOURS =~ ^[1-9][0-9]{0,3}$ ]] || die "MAX_HOURS=$MAX_HOURS: a whole number of hours, for example MAX_HOURS=24"
[[ $NAME =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || die "NAME=$NAME: small letters, digits and '-', for example NAME=baton"
user_data=${OUT:-$PWD/.build/start}/$cloud.yaml
where=() create=() ids=() again=() watch=() remove=() registry="" tool="" grace="" own="" federation=""
# shellcheck source=launch/cloud-init/gcp.sh
. "launch/cloud-init/$cloud.sh"
: "${IMAGE:=$registry/baton:$TAG}"
[[ $IMAGE == */* ]] || IMAGE=$registry/baton:$TAG # make's own name for the image here means nothing there

# The store of its own cloud the VM gets at as itself. To another's it is let in as itself too, by a federation. For
# Google's that is a file that says how Google is asked for a token, and holds none; for the others some variables.
google="" identity=()
case $BATON_STORE in
    "$own"://*) ;;
    gs://*)
        want "$federation" "launch/google-from-$cloud.json" "docs/launch.md, The store on another cloud"
        grep -qs '"type": *"external_account"' "${!federation}" ||
            die "$federation=${!federation}: must be what \`gcloud iam workload-identity-pools create-cred-config\` wrote; a key is a secret, which whoever can log in to the VM would read"
        google=$(base64 <"${!federation}" | tr -d '\n')
        ;;
    s3://*)
        role=${cloud^^}_TO_AWS_ROLE
        want "$role" arn:aws:iam::123456789012:role/baton-from-"$cloud" "docs/stores.md, From one cloud to another's store"
        want AWS_REGION eu-west-1
        identity=("AWS_ROLE_ARN=${!role}" "AWS_REGION=$AWS_REGION")
        if [[ $cloud == azure ]]; then
            want AZURE_TO_AWS_AUDIENCE api://APP "docs/stores.md, From one cloud to another's store"
            identity+=("BATON_IDENTITY_AUDIENCE=$AZURE_TO_AWS_AUDIENCE")
        fi
        ;;
    az://*)
        want AZURE_TENANT_ID TENANT "az account show --query tenantId"
        want AZURE_CLIENT_ID APP "docs/stores.md, From one cloud to another's store"
        identity=("AZURE_TENANT_ID=$AZURE_TENANT_ID" "AZURE_CLIENT_ID=$AZURE_CLIENT_ID")
        [[ $cloud != aws ]] || identity+=("AWS_REGION=$AWS_REGION")
        ;;
    *) die "BATON_STORE=$BATON_STORE: a VM can't get at it: gs://, s3:// or az://" ;;
esac
if ((${#identity[@]})); then
    identity+=("BATON_IDENTITY=${cloud/gcp/google}")
    for setting in "${identity[@]}"; do
        [[ $setting =~ ^[A-Za-z0-9_.:/@=+-]+$ ]] || die "$setting: only letters, digits and _ . : / @ = + -"
    done
fi

# Into the file that the VM is given. What is filled in are words: nothing in them is run, or breaks out of its line.
fill_in() {
    local text name value
    text=$(<launch/cloud-init/user-data.yaml)
    text=${text//@GOOGLE@/$google}
    text=${text//@IDENTITY@/$( ((!${#identity[@]})) || printf '%s\n' "${identity[@]}" | base64 | tr -d '\n')}
    for name in IMAGE JOB MAX_HOURS GRACE STOP_S BATON_STORE BATON_RUN; do
        value=${!name}
        [[ $value =~ ^[A-Za-z0-9_.,:/@=+\ -]+$ ]] || die "$name=$value: only letters, digits, spaces and _ . , : / @ = + -"
        text=${text//@$name@/$value}
    done
    mkdir -p "${user_data%/*}"
    printf '%s\n' "$text" >"$user_data"
}

# As one would type it, an option to a line.
show() {
    local word text=""
    for word in "$@"; do
        # shellcheck disable=SC1003 # a backslash at a line's end is meant
        case $word in
            --*) text+=$(printf ' \\\n    %q' "$word") ;;
            "&&") text+=$' \\\n    &&' ;;
            *) text+=" $(quoted "$word")" ;;
        esac
    done
    echo "${text# }"
}

quoted() {
    if [[ $1 =~ [^A-Za-z0-9_.,:/@=+-] ]]; then
        printf "'%s'" "${1//\'/\'\\\'\'}"
    else
        printf '%s' "$1"
    fi
}

export GRACE=$grace STOP_S=$((grace + 15))
fill_in
if [[ -z $GO ]]; then
    echo "# The first time:"
    show "${create[@]}"
    if ((${#ids[@]})); then
        echo "# Its INSTANCE and REQUEST, which the lines below want:"
        show "${ids[@]}"
    fi
    echo "# After an eviction, while the VM is there:"
    show "${again[@]}"
    echo "# To see what it does:"
    show "${watch[@]}"
    echo "# To be rid of it:"
    show "${remove[@]}"
    echo "# Nothing was run: GO=1 make start-$cloud does the first or the second, whichever it is. What the VM is told: ${user_data#"$PWD/"}"
    exit 0
fi
want_tool "$tool"
state=$(look) || die "$tool can't tell whether $NAME is there already: nothing was started"
read -r found instance <<<"$state" || true
made="as it was made: JOB, TAG, MAX_HOURS, GPU and whatever else is given now are not looked at; NAME=other makes a new one"
case $found in
    stopped)
        again=("${again[@]/#INSTANCE/${instance:-}}")
        echo "$NAME is there already, and off. It is started $made"
        show "${again[@]}"
        "${again[@]}"
        ;;
    there) echo "$NAME is there already, and on, $made" ;;
    going) die "$NAME is going off: try again in a minute" ;;
    *)
        show "${create[@]}"
        "${create[@]}"
        ;;
esac
