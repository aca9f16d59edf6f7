"""`make start-gcp`, `start-aws`, `start-azure` show the right create command, and run it when told to."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from tests.launch.parsers import REPOSITORY
from tests.launch.stand_ins import StandIns

SETTINGS = {
    "gcp": {
        "GCP_PROJECT": "project",
        "GCP_ZONE": "europe-west4-a",
        "GCP_REGISTRY": "europe-west4-docker.pkg.dev/project/baton",
        "GCP_SERVICE_ACCOUNT": "baton-runner@project.iam.gserviceaccount.com",
    },
    "aws": {
        "AWS_REGION": "eu-west-1",
        "AWS_REGISTRY": "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "AWS_INSTANCE_PROFILE": "baton",
    },
    "azure": {
        "AZURE_GROUP": "baton",
        "AZURE_LOCATION": "westeurope",
        "AZURE_REGISTRY": "name.azurecr.io",
        "AZURE_IDENTITY": "baton",
    },
}
# its own cloud's
STORES = {
    "gcp": {"BATON_STORE": "gs://bucket/runs"},
    "aws": {"BATON_STORE": "s3://bucket/runs"},
    "azure": {"BATON_STORE": "az://account/container/runs"},
}
FEDERATIONS = {"aws": "AWS_TO_GOOGLE", "azure": "AZURE_TO_GOOGLE"}
TOOLS = {"gcp": "gcloud", "aws": "aws", "azure": "az"}
# what must stand in each create command: spot, stopped rather than deleted, notices, identity
NEEDED = {
    "gcp": (
        "--provisioning-model=SPOT --instance-termination-action=STOP --preemption-notice-duration=120s "
        "--max-run-duration=24h --service-account=baton-runner@project.iam.gserviceaccount.com"
    ),
    "aws": (
        '"SpotInstanceType": "persistent" "InstanceInterruptionBehavior": "stop" "HttpPutResponseHopLimit": 2 '
        '"HttpTokens": "required" --iam-instance-profile --instance-initiated-shutdown-behavior'
    ),
    "azure": (
        "--priority --eviction-policy --additional-scheduled-events --enable-user-reboot-scheduled-events "
        "--enable-user-redeploy-scheduled-events --assign-identity --os-disk-delete-option --nic-delete-option"
    ),
}


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path / "bin")


def start(stand_ins: StandIns, cloud: str, **settings: str) -> tuple[int, str]:
    """`make start-CLOUD`; what the VM would be told is written beside the stand-ins."""
    settings["OUT"] = str(stand_ins.folder)
    done = subprocess.run(
        ["make", f"start-{cloud}", *(f"{name}={value}" for name, value in settings.items())],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=stand_ins.environment,
    )
    return done.returncode, done.stdout


def create_command(shown: str) -> list[str]:
    """The first command that is shown, as a shell would understand it."""
    return shlex.split(re.split(r"^#.*\n", shown, flags=re.MULTILINE)[1].replace("\\\n", " "))


@pytest.mark.parametrize("cloud", SETTINGS)
def test_the_create_command_is_shown_whole_and_not_run(cloud: str, stand_ins: StandIns):
    stand_ins.add(TOOLS[cloud])
    code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES[cloud])
    assert code == 0, said
    command = create_command(said)
    assert command[0] == TOOLS[cloud]
    for needed in re.findall(r'"\w+": \S+|\S+', NEEDED[cloud]):
        assert needed in " ".join(command), needed
    assert "GO=1" in said
    assert stand_ins.calls == []
    user_data = (stand_ins.folder / f"{cloud}.yaml").read_text()
    assert f"BATON_STORE={STORES[cloud]['BATON_STORE']}\n" in user_data
    assert "/baton:cuda" in user_data


# machine, system with driver, docker and NVIDIA's toolkit, and a disk that holds it
WITH_GPU = {
    "gcp": ("g2-standard-4", "deeplearning-platform-release", "--maintenance-policy=TERMINATE"),
    "aws": ("g6.xlarge", "/aws/service/deeplearning/", '"VolumeSize": 128'),
    "azure": ("Standard_NC4as_T4_v3", "microsoft-dsvm:ubuntu-hpc", "--os-disk-size-gb 128"),
}


@pytest.mark.parametrize("cloud", SETTINGS)
def test_with_gpu_it_asks_for_a_machine_with_one_and_its_driver(cloud: str, stand_ins: StandIns):
    _, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES[cloud], GPU="1")
    for needed in WITH_GPU[cloud]:
        assert needed in " ".join(create_command(said)), needed


@pytest.mark.parametrize("cloud", SETTINGS)
def test_the_page_shows_what_is_shown(cloud: str, stand_ins: StandIns):
    known = {"GCP_PROJECT": "PROJECT", "GCP_SERVICE_ACCOUNT": "baton-runner@PROJECT.iam.gserviceaccount.com"}
    _, said = start(stand_ins, cloud, **SETTINGS[cloud] | STORES[cloud] | known)
    said = said.replace(f"told: {stand_ins.folder}", "told: .build/start")
    said = said.replace(str(stand_ins.folder), "/home/you/baton/.build/start")
    page = (REPOSITORY / "docs" / "launch.md").read_text()
    assert "".join(f"    {line}\n" for line in said.splitlines()) in page, said


def test_awss_own_description_of_the_request_accepts_the_command(stand_ins: StandIns):
    """By the model that aws and boto3 share, as the command line's options name its members."""
    _, said = start(stand_ins, "aws", **SETTINGS["aws"], **STORES["aws"])
    words = create_command(said)[3:]
    given: dict[str, Any] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        name = "".join(part.capitalize() for part in option.removeprefix("--").split("-"))
        given[name] = json.loads(value) if value[0] in "[{" else value
    assert given.pop("Region") == "eu-west-1"
    count = int(given.pop("Count"))
    given |= {"MinCount": count, "MaxCount": count}
    model = ServiceModel(Loader().load_service_model("ec2", "service-2"))
    shape = model.operation_model("RunInstances").input_shape
    report = ParamValidator().validate(given, shape)
    assert not report.has_errors(), report.generate_report()
    given["MetadataOptions"]["HttpPutResponseHopLimits"] = given["MetadataOptions"].pop("HttpPutResponseHopLimit")
    assert ParamValidator().validate(given, shape).has_errors()


FOUND = {
    "gcp": {"": "", "stopped": "echo TERMINATED", "there": "echo RUNNING", "going": "echo STOPPING"},
    "aws": {
        "": "echo None",
        "stopped": '[[ "$*" != *=stopped* ]] || echo i-0123',
        "there": '[[ "$*" != *running* ]] || echo i-0123',
        "going": '[[ "$*" != *stopping* ]] || echo i-0123',
    },
    "azure": {
        "": "",
        "stopped": 'echo "VM deallocated"',
        "there": 'echo "VM running"',
        "going": 'echo "VM deallocating"',
    },
}
STARTS = {"gcp": ["compute", "instances", "start"], "aws": ["ec2", "start-instances"], "azure": ["vm", "start"]}


@pytest.mark.parametrize("cloud", SETTINGS)
def test_with_go_it_is_created_or_where_an_eviction_stopped_it_started_again(cloud: str, stand_ins: StandIns):
    for state in ("", "stopped", "there"):
        stand_ins.add(TOOLS[cloud], FOUND[cloud][state])
        before = len(stand_ins.calls)
        code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES[cloud], GO="1")
        assert code == 0, said
        last = stand_ins.calls[before:][-1][1:]
        created = any("create" in word or word == "run-instances" for word in last[:4])
        assert created == (state == ""), last
        assert (last[: len(STARTS[cloud])] == STARTS[cloud]) == (state == "stopped"), last
        if state == "stopped" and cloud == "aws":
            assert last[-1] == "i-0123"
        if state:
            assert "as it was made: JOB, TAG, MAX_HOURS, GPU and whatever else is given now are not looked at" in said
            assert "NAME=other makes a new one" in said


@pytest.mark.parametrize("cloud", SETTINGS)
def test_one_that_is_going_off_is_left_alone_and_said_to_be_in_neither_state(cloud: str, stand_ins: StandIns):
    stand_ins.add(TOOLS[cloud], FOUND[cloud]["going"])
    code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES[cloud], GO="1")
    assert code != 0
    assert said.startswith("baton is going off: try again in a minute"), said
    for call in stand_ins.calls:
        assert not {"create", "start", "run-instances", "start-instances"} & set(call), call


@pytest.mark.parametrize("cloud", SETTINGS)
def test_where_the_cloud_cant_say_what_is_there_nothing_is_started(cloud: str, stand_ins: StandIns):
    stand_ins.add(TOOLS[cloud], "echo 'not logged in' >&2; exit 1")
    code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES[cloud], GO="1")
    assert code != 0
    assert "nothing was started" in said
    assert len(stand_ins.calls) == 1


@pytest.mark.parametrize("cloud", SETTINGS)
def test_each_missing_setting_is_one_line_with_what_mends_it(cloud: str, stand_ins: StandIns):
    for missing in (*SETTINGS[cloud], *STORES[cloud]):
        settings = {name: value for name, value in (SETTINGS[cloud] | STORES[cloud]).items() if name != missing}
        code, said = start(stand_ins, cloud, **settings)
        line = said.splitlines()[0]
        assert code != 0
        assert line.startswith(f"{missing} is not set: echo '{missing}="), said
        assert ">> launch/registries.env" in line


@pytest.mark.parametrize("cloud", FEDERATIONS)
def test_a_vm_of_another_cloud_is_told_how_google_lets_it_in_and_never_a_key(
    cloud: str, stand_ins: StandIns, tmp_path: Path
):
    name, file = FEDERATIONS[cloud], tmp_path / "google.json"
    code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES["gcp"], GO="1")
    assert code != 0
    assert said.startswith(f"{name} is not set: echo '{name}=launch/google-from-{cloud}.json' >> launch/registries.env")
    file.write_text('{"type": "service_account", "private_key": "secret"}')
    code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES["gcp"], GO="1", **{name: str(file)})
    assert code != 0
    assert said.startswith(f"{name}={file}: must be what `gcloud iam workload-identity-pools create-cred-config`"), said
    assert stand_ins.calls == []
    federation = {"universe_domain": "googleapis.com", "type": "external_account", "audience": "x" * 200}
    file.write_text(json.dumps(federation, indent=2))
    code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES["gcp"], **{name: str(file)})
    assert code == 0, said
    files = yaml.safe_load((stand_ins.folder / f"{cloud}.yaml").read_text())["write_files"]
    told = next(one for one in files if one["path"] == "/etc/baton/google.json")
    assert told["encoding"] == "b64"
    assert json.loads(base64.b64decode(told["content"])) == federation


ROLE = "arn:aws:iam::123456789012:role/baton"
# by what a VM of one cloud is let in to the store of another: settings -> what its container is told
LOGINS = {
    ("gcp", "aws"): ({"GCP_TO_AWS_ROLE": ROLE, "AWS_REGION": "eu-west-1"}, {"BATON_IDENTITY": "google"}),
    ("azure", "aws"): (
        {"AZURE_TO_AWS_ROLE": ROLE, "AWS_REGION": "eu-west-1", "AZURE_TO_AWS_AUDIENCE": "api://app"},
        {"BATON_IDENTITY": "azure", "BATON_IDENTITY_AUDIENCE": "api://app", "AWS_ROLE_ARN": ROLE},
    ),
    ("gcp", "azure"): ({"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"}, {"BATON_IDENTITY": "google"}),
    ("aws", "azure"): (
        {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"},
        {"BATON_IDENTITY": "aws", "AWS_REGION": "eu-west-1", "AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c"},
    ),
}


@pytest.mark.parametrize(("cloud", "store"), LOGINS)
def test_a_vm_of_another_cloud_is_told_how_it_logs_in_as_itself(cloud: str, store: str, stand_ins: StandIns):
    settings, told = LOGINS[cloud, store]
    given = SETTINGS[cloud] | STORES[store] | settings
    for missing in settings:
        code, said = start(stand_ins, cloud, **{name: value for name, value in given.items() if name != missing})
        assert code != 0
        assert said.startswith(f"{missing} is not set: echo '{missing}="), said
    code, said = start(stand_ins, cloud, **given)
    assert code == 0, said
    files = yaml.safe_load((stand_ins.folder / f"{cloud}.yaml").read_text())["write_files"]
    written = {one["path"]: base64.b64decode(one["content"]) for one in files if one.get("encoding") == "b64"}
    variables = dict(line.split("=", 1) for line in written["/etc/baton/identity"].decode().splitlines())
    assert variables.items() >= told.items()
    assert written["/etc/baton/google.json"] == b""
    _, said = start(stand_ins, cloud, **given | {next(iter(settings)): "a b"})
    assert "only letters, digits" in said


def test_a_store_that_no_vm_could_get_at_is_refused_before_it_costs_anything(stand_ins: StandIns):
    code, said = start(stand_ins, "gcp", **SETTINGS["gcp"], BATON_STORE="file:///store", GO="1")
    assert code != 0
    assert said.startswith("BATON_STORE=file:///store: a VM can't get at it: gs://, s3:// or az://")
    assert stand_ins.calls == []


@pytest.mark.parametrize("wrong", [{"MAX_HOURS": "soon"}, {"NAME": "My VM"}, {"JOB": "cifar10; rm -rf /"}])
def test_what_would_break_out_of_its_place_is_refused(wrong: dict[str, str], stand_ins: StandIns):
    code, said = start(stand_ins, "gcp", **SETTINGS["gcp"], **STORES["gcp"], **wrong)
    assert code != 0
    assert said.startswith(f"{next(iter(wrong))}="), said


def test_settings_come_from_the_file_and_the_environment_wins(stand_ins: StandIns, tmp_path: Path):
    file = tmp_path / "registries.env"
    file.write_text(
        "# mine\n" + "".join(f"{name}={value}\n" for name, value in (SETTINGS["gcp"] | STORES["gcp"]).items())
    )
    code, said = start(stand_ins, "gcp", REGISTRIES=str(file), GCP_ZONE="us-central1-b")
    assert code == 0, said
    assert "--zone=us-central1-b" in said
    file.write_text("GCP_PROJECT = $(touch pwned)\n")
    code, said = start(stand_ins, "gcp", REGISTRIES=str(file))
    assert code != 0
    assert f"{file}:1: must be NAME=value" in said


def test_every_setting_that_the_scripts_read_is_in_the_example():
    example = (REPOSITORY / "launch" / "registries.env.example").read_text()
    read = [*SETTINGS.values(), *STORES.values(), dict.fromkeys(FEDERATIONS.values())]
    for name in {name for settings in read for name in settings}:
        assert f"\n#{name}=" in example, name


@pytest.mark.parametrize("cloud", SETTINGS)
def test_the_example_with_its_number_signs_taken_is_a_file_that_starts_a_vm(
    cloud: str, stand_ins: StandIns, tmp_path: Path
):
    example = (REPOSITORY / "launch" / "registries.env.example").read_text()
    file = tmp_path / "registries.env"
    file.write_text(re.sub(r"^#(?! )", "", example, flags=re.MULTILINE))
    code, said = start(stand_ins, cloud, REGISTRIES=str(file), **STORES[cloud])
    assert code == 0, said
