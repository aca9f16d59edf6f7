#!/usr/bin/env bash
# Sourced by make/start.sh: a spot VM on Azure. Who starts it again after an eviction: you, by the same line; the VM is
# deallocated, not deleted, and its disk and address are charged for until both are deleted.
# shellcheck disable=SC2034,SC2154 # make/start.sh sets and reads these

want AZURE_GROUP baton "az group create --name baton --location westeurope"
want AZURE_LOCATION westeurope
want AZURE_REGISTRY NAME.azurecr.io "make push-azure"
want AZURE_IDENTITY baton "az identity create --name baton --resource-group $AZURE_GROUP"
registry=$AZURE_REGISTRY tool=az grace=25 own=az federation=AZURE_TO_GOOGLE

# Microsoft's own HPC image has the driver, docker and NVIDIA's toolkit
if [[ -n $GPU ]]; then
    machine=${AZURE_MACHINE:-Standard_NC4as_T4_v3} system=microsoft-dsvm:ubuntu-hpc:2204:latest disk=128
else
    machine=${AZURE_MACHINE:-Standard_D4s_v5} system=Canonical:ubuntu-24_04-lts:server:latest disk=64
fi
where=(--resource-group "$AZURE_GROUP" --name "$NAME")

create=(
    az vm create "${where[@]}" --location "$AZURE_LOCATION" --size "$machine" --image "$system" --os-disk-size-gb "$disk"
    # spot, evicted only when Azure needs the room (-1: the price is never a reason, and never above the regular one)
    --priority Spot --eviction-policy Deallocate --max-price -1
    # notices: Scheduled Events turn on when Baton first asks for them; these add what a person does to the VM
    --additional-scheduled-events true --enable-user-reboot-scheduled-events true
    --enable-user-redeploy-scheduled-events true
    # the least rights: read the registry, write the store, and deallocate itself (docs/launch.md)
    --assign-identity "$AZURE_IDENTITY"
    # it has an address to fetch from, and no port open to the world
    --nsg-rule NONE --admin-username baton --generate-ssh-keys
    --custom-data "$user_data"
    # or `az vm delete` would leave them, and the disk's price
    --os-disk-delete-option Delete --nic-delete-option Delete
)
again=(az vm start "${where[@]}")
# the console is kept from then on
watch=(az vm boot-diagnostics enable "${where[@]}" "&&" az vm boot-diagnostics get-boot-log "${where[@]}")
remove=(az vm delete "${where[@]}" --yes "&&"
    az network public-ip delete --resource-group "$AZURE_GROUP" --name "${NAME}PublicIP")

look() {
    local power
    power=$(az vm list --resource-group "$AZURE_GROUP" --show-details --query "[?name=='$NAME'].powerState" \
        --output tsv --only-show-errors) || return 1
    case $power in
        "") ;;
        "VM deallocated" | "VM stopped") echo stopped ;;
        "VM deallocating" | "VM stopping") echo going ;;
        *) echo there ;;
    esac
}
