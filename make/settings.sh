#!/usr/bin/env bash
# Sourced, after make/docker.sh, by make/push.sh and make/start.sh: settings from launch/registries.env or the
# environment, and a line that mends it where one or a tool is missing.

# What the environment has wins over the file: `AWS_REGISTRY=... make push-aws`.
read_settings() {
    local file=${REGISTRIES:-launch/registries.env} line name number=0
    [[ -f $file ]] || return 0
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%$'\r'}
        [[ -n $line && $line != '#'* ]] || continue
        name=${line%%=*}
        [[ $line == *=* && $name =~ ^[A-Z][A-Z0-9_]*$ ]] || die "$file:$number: must be NAME=value, without spaces: $line"
        # as it stands: nothing in the file is run
        [[ -n ${!name:-} ]] || export "$name=${line#*=}"
    done <"$file"
}

# want NAME EXAMPLE COMMAND: refuse, with the line that mends it, where a setting is missing.
want() {
    [[ -n ${!1:-} ]] ||
        die "$1 is not set: echo '$1=$2' >> launch/registries.env${3:+   (before that, once: $3)}"
}

# The cloud's own tool, and how to come by it.
want_tool() {
    command -v "$1" >/dev/null && return
    case $1 in
        gcloud) die "gcloud isn't there: curl https://sdk.cloud.google.com | bash && gcloud auth login" ;;
        # version 2: that of pip is 1, which knows no `aws configure sso`
        aws) die "aws isn't there: curl -o aws.zip https://awscli.amazonaws.com/awscli-exe-linux-$HOSTTYPE.zip && unzip -q aws.zip && sudo aws/install && aws configure sso" ;;
        az) die "az isn't there: curl -sL https://aka.ms/InstallAzureCLIDeb | sudo bash && az login" ;;
        *) die "$1 isn't there: install it" ;;
    esac
}
