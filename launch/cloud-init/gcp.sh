#!/usr/bin/env bash
# Sourced by make/start.sh: a spot VM on Google Cloud. Who starts it again after an eviction: you, by the same line; the
# VM is stopped, not deleted, and its disk is charged for until `gcloud compute instances delete`.
# shellcheck disable=SC2034,SC2154 # make/start.sh sets and reads these

want GCP_PROJECT PROJECT
want GCP_ZONE europe-west4-a
want GCP_REGISTRY "europe-west4-docker.pkg.dev/$GCP_PROJECT/baton" "make push-gcp"
want GCP_SERVICE_ACCOUNT "baton-runner@$GCP_PROJECT.iam.gserviceaccount.com" "gcloud iam service-accounts create baton-runner"
registry=$GCP_REGISTRY tool=gcloud grace=25 own=gs

# Google's own Deep Learning image has the driver, docker and NVIDIA's toolkit; g2 machines bring an L4 along.
if [[ -n $GPU ]]; then
    machine=${GCP_MACHINE:-g2-standard-4}
    system=(--image-project=deeplearning-platform-release --image-family=common-cu128-ubuntu-2204-nvidia-570
        --maintenance-policy=TERMINATE)
else
    machine=${GCP_MACHINE:-n2-standard-4}
    system=(--image-project=ubuntu-os-cloud --image-family=ubuntu-2404-lts-amd64) # Google's Debian has no cloud-init
fi
where=("--project=$GCP_PROJECT" "--zone=$GCP_ZONE")

create=(
    gcloud beta compute instances create "$NAME" "${where[@]}" "--machine-type=$machine" "${system[@]}"
    --boot-disk-size=64GB
    # spot; STOP keeps the disk, so that the next start needs no pull of the image
    --provisioning-model=SPOT --instance-termination-action=STOP
    # two minutes between the notice in the metadata and the 30 s of the shutdown, in place of none
    --preemption-notice-duration=120s
    # Google's own hand on the switch, should the VM hang: counted from each start
    "--max-run-duration=${MAX_HOURS}h"
    # the least rights: the account may read the registry and write the store, and the scope adds nothing to that
    "--service-account=$GCP_SERVICE_ACCOUNT" --scopes=cloud-platform
    --metadata=serial-port-logging-enable=TRUE "--metadata-from-file=user-data=$user_data"
)
again=(gcloud compute instances start "$NAME" "${where[@]}")
watch=(gcloud compute instances get-serial-port-output "$NAME" "${where[@]}")
remove=(gcloud compute instances delete "$NAME" "${where[@]}")

# "stopped", "there" or "going" (off); nothing where there is no such VM. Fails where Google can't be asked: better than a second VM.
look() {
    local status
    status=$(gcloud compute instances list "--project=$GCP_PROJECT" "--filter=name=$NAME AND zone:$GCP_ZONE" \
        --format='value(status)') || return 1
    case $status in
        "") ;;
        TERMINATED) echo stopped ;;
        STOPPING | PENDING_STOP | SUSPENDING) echo going ;;
        *) echo there ;;
    esac
}
