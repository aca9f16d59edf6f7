#!/usr/bin/env bash
# Sourced by make/start.sh: a spot instance on AWS. Who starts it again after an eviction: AWS itself, as soon as there
# is room, because the spot request is persistent and the instance was stopped, not terminated. You start one that shut
# itself down, by the same line. Its disk is charged for until it is terminated; and until the spot request is cancelled
# as well, AWS makes a new one in its place.
# shellcheck disable=SC2034,SC2154 # make/start.sh sets and reads these

want AWS_REGION eu-west-1
want AWS_REGISTRY "123456789012.dkr.ecr.$AWS_REGION.amazonaws.com" "make push-aws"
want AWS_INSTANCE_PROFILE baton "docs/launch.md, AWS"
registry=$AWS_REGISTRY tool=aws grace=110 own=s3 federation=AWS_TO_GOOGLE

# AWS's own Deep Learning image has the driver, docker and NVIDIA's toolkit. By its name, which resolves to the newest.
if [[ -n $GPU ]]; then
    machine=${AWS_MACHINE:-g6.xlarge}
    system=resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id
    disk=128
else
    machine=${AWS_MACHINE:-c7i.xlarge}
    system=resolve:ssm:/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id
    disk=64
fi
where=(--region "$AWS_REGION")

create=(
    aws ec2 run-instances "${where[@]}" --count 1 --instance-type "$machine" --image-id "$system"
    --block-device-mappings "[{\"DeviceName\": \"/dev/sda1\", \"Ebs\": {\"VolumeSize\": $disk, \"VolumeType\": \"gp3\"}}]"
    --instance-market-options '{"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"}}'
    # a shutdown from within stops it too, and doesn't delete it
    --instance-initiated-shutdown-behavior stop
    # hop limit 2: the metadata's token must cross docker's bridge as well, or the container sees neither role nor
    # notice
    --metadata-options '{"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 2}'
    # the least rights: the role may read the registry and write the store
    --iam-instance-profile "{\"Name\": \"$AWS_INSTANCE_PROFILE\"}"
    --tag-specifications "[{\"ResourceType\": \"instance\", \"Tags\": [{\"Key\": \"Name\", \"Value\": \"$NAME\"}]}]"
    --user-data "file://$user_data"
)
ids=(aws ec2 describe-instances "${where[@]}" --output text --filters "Name=tag:Name,Values=$NAME"
    --query 'Reservations[].Instances[].[InstanceId,SpotInstanceRequestId,State.Name]')
# AWS refuses this to an instance that it has stopped itself: that one it starts itself, when there is room
again=(aws ec2 start-instances "${where[@]}" --instance-ids INSTANCE)
watch=(aws ec2 get-console-output "${where[@]}" --latest --output text --instance-id INSTANCE)
remove=(aws ec2 cancel-spot-instance-requests "${where[@]}" --spot-instance-request-ids REQUEST "&&"
    aws ec2 terminate-instances "${where[@]}" --instance-ids INSTANCE)

# in_state STATE,...: the instance of that name, if there is one
in_state() {
    local found
    found=$(aws ec2 describe-instances "${where[@]}" --output text --query 'Reservations[].Instances[].InstanceId' \
        --filters "Name=tag:Name,Values=$NAME" "Name=instance-state-name,Values=$1") || return 1
    [[ $found == None ]] || echo "$found"
}

look() {
    local stopped going there
    stopped=$(in_state stopped) || return 1
    going=$(in_state stopping) || return 1
    there=$(in_state pending,running) || return 1
    if [[ -n $stopped ]]; then
        echo "stopped $stopped"
    elif [[ -n $going ]]; then
        echo going
    elif [[ -n $there ]]; then
        echo there
    fi
}
