"""The VM's first boot is valid, and what it installs runs the image until nothing is left to do, then stops paying.

docker, systemctl and curl are stand-ins here: the script's own decisions are what is tested.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.parsers import LAUNCH, REPOSITORY, program
from tests.launch.stand_ins import StandIns
from tests.launch.test_start import SETTINGS, STORES, start

USER_DATA = LAUNCH / "cloud-init" / "user-data.yaml"
AZURES_TAG = "7783-7084-3265-9085-8269-3286-77"


def written() -> dict[str, str]:
    """The files that it writes, by their path."""
    return {file["path"]: file["content"] for file in yaml.safe_load(USER_DATA.read_text())["write_files"]}


def schema(file: Path) -> tuple[int, str]:
    done = subprocess.run(
        [program("cloud-init"), "schema", "--config-file", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("cloud", SETTINGS)
def test_what_each_clouds_vm_is_told_is_valid_and_has_every_blank_filled_in(cloud: str, tmp_path: Path):
    stand_ins = StandIns(tmp_path / "bin")
    code, said = start(stand_ins, cloud, **SETTINGS[cloud], **STORES[cloud], JOB="cifar10 --epochs 20")
    assert code == 0, said
    file = stand_ins.folder / f"{cloud}.yaml"
    code, said = schema(file)
    assert code == 0, said
    assert file.stat().st_size <= 16384  # AWS takes no more
    files = {one["path"]: one["content"] for one in yaml.safe_load(file.read_text())["write_files"]}
    settings = dict(line.split("=", 1) for line in files["/etc/baton/settings"].splitlines())
    assert settings["JOB"] == "cifar10 --epochs 20"
    assert settings["BATON_RUN"] == "cifar10"
    assert settings["MAX_HOURS"] == "24"
    unit = files["/etc/systemd/system/baton.service"]
    stop_s = int(unit.split("TimeoutStopSec=")[1].split()[0])
    assert stop_s > int(settings["GRACE"])  # systemd leaves time for the last save
    assert "@" not in settings["IMAGE"] + unit


def test_the_minutes_that_are_counted_are_minutes():
    """With systemd's own accuracy, a minute, MAX_HOURS=24 would be two days that are paid for."""
    timer = dict(re.findall(r"(\w+)=(\w+)", written()["/etc/systemd/system/baton-hours.timer"]))
    assert (timer["OnBootSec"], timer["OnUnitActiveSec"], timer["AccuracySec"]) == ("60", "60", "100ms")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("write_files:", "write_files: /etc/baton/settings\nfiles:"),
        ("runcmd:", "runcmd: 7\ncommands:"),
        ("  - path: /etc/baton/settings", "  - pathh: x"),
    ],
)
def test_a_mistake_in_it_is_found(right: str, wrong: str, tmp_path: Path):
    text = USER_DATA.read_text()
    assert right in text
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace(right, wrong, 1))
    code, said = schema(broken)
    assert code != 0, said


def test_its_script_is_good_shell(tmp_path: Path):
    script = tmp_path / "baton-vm"
    script.write_text(written()["/usr/local/bin/baton-vm"])
    # SC2153: /etc/baton/settings has them; SC2086: $JOB is a job and its options
    command = [REPOSITORY / ".venv" / "bin" / "shellcheck", "-e", "SC2086,SC2153", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Machine:
    """A VM: the script, its state on disk, and stand-ins for what it calls."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.script = folder / "baton-vm"
        self.script.write_text(written()["/usr/local/bin/baton-vm"])
        self.stand_ins = StandIns(folder / "bin")
        self.dmi = folder / "dmi"
        self.dmi.mkdir()
        self.google = folder / "google.json"
        self.google.touch()
        self.identity = folder / "identity"
        self.identity.touch()
        self.codes = folder / "codes"
        # `docker run` gives the next exit code of the list, the last one for ever
        self.stand_ins.add(
            "docker",
            f'''
[[ $1 == run ]] || exit 0
read -r code rest <"{self.codes}"
[[ -z $rest ]] || echo "$rest" >"{self.codes}"
exit "$code"''',
        )
        self.stand_ins.add("systemctl")
        self.stand_ins.add("dpkg")
        self.stand_ins.add("curl", "cat >/dev/null")

    def environment(self, **extra: str) -> dict[str, str]:
        return self.stand_ins.environment | {
            "BATON_STATE": str(self.state),
            "BATON_DMI": str(self.dmi),
            "BATON_GOOGLE": str(self.google),
            "BATON_VARIABLES": str(self.identity),
            "BATON_OFF_AFTER": "0",
            "BATON_AGAIN_AFTER": "0",
            "IMAGE": "registry.example/baton:cpu",
            "JOB": "cifar10 --epochs 20",
            "MAX_HOURS": "2",
            "GRACE": "25",
            "BATON_STORE": "gs://bucket/runs",
            "BATON_RUN": "cifar10",
            **extra,
        }

    def boot(self, *codes: int, command: str = "work", **extra: str) -> str:
        """What it said until it turned itself off."""
        self.codes.write_text(" ".join(map(str, codes)) + "\n")
        done = subprocess.run(
            ["bash", self.script, command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(**extra),
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    @property
    def runs(self) -> list[list[str]]:
        return [call[2:] for call in self.stand_ins.calls if call[:2] == ["docker", "run"]]

    @property
    def turned_off(self) -> int:
        return sum(call == ["systemctl", "poweroff"] for call in self.stand_ins.calls)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_when_the_run_is_finished_the_vm_turns_itself_off_and_the_next_boot_asks_again(machine: Machine):
    said = machine.boot(0)
    assert (len(machine.runs), machine.turned_off) == (1, 1)
    assert "exit code 0" in said
    assert machine.runs[0][-3:] == ["cifar10", "--epochs", "20"]
    machine.boot(0)
    assert len(machine.runs) == 2


@pytest.mark.parametrize("code", [64, 78])
def test_what_a_person_must_mend_turns_it_off_and_is_not_tried_again_until_one_has(code: int, machine: Machine):
    machine.boot(code)
    assert (len(machine.runs), machine.turned_off) == (1, 1)
    said = machine.boot(0)
    assert (len(machine.runs), machine.turned_off) == (1, 2)
    assert f"exit code {code}" in said
    (machine.state / "given-up").unlink()
    machine.boot(0)
    assert len(machine.runs) == 2


def test_after_74_and_75_it_goes_on_however_often(machine: Machine):
    machine.boot(*[75, 74] * 4, 0)
    assert (len(machine.runs), machine.turned_off) == (9, 1)


def test_a_defect_is_tried_three_times_in_a_row(machine: Machine):
    machine.boot(1, 1, 75, 1, 137, 1)
    assert (len(machine.runs), machine.turned_off) == (6, 1)
    assert (machine.state / "given-up").exists()


def test_after_its_hours_over_all_boots_it_is_stopped_and_off_for_good(machine: Machine):
    machine.state.mkdir()
    (machine.state / "minutes").write_text("118\n")  # of 120
    machine.boot(0, command="hours")
    assert machine.turned_off == 0
    said = machine.boot(0, command="hours")
    assert machine.turned_off == 1
    assert "on for 2 hours" in said
    assert f"removed {machine.state / 'given-up'}" in said
    assert "to stay: systemctl stop baton-hours)" in said  # whose `off` it is
    assert ["docker", "stop", "-t", "25", "baton"] in machine.stand_ins.calls
    said = machine.boot(0)
    assert machine.runs == []
    assert "to stay: systemctl stop baton)" in said


def test_on_a_full_disk_it_goes_off_all_the_same_by_this_boots_minutes_at_least(machine: Machine, tmp_path: Path):
    machine.state.mkdir()
    (machine.state / "minutes.new").symlink_to("/dev/full")
    (machine.state / "given-up").symlink_to("/dev/full")
    minutes, uptime = machine.state / "minutes", tmp_path / "uptime"
    minutes.write_text("118\n")  # of 120
    uptime.write_text("7140.25 14000.00\n")
    machine.boot(0, command="hours", BATON_UPTIME=str(uptime))
    assert (machine.turned_off, minutes.read_text()) == (0, "118\n")  # what was counted stays
    uptime.write_text("7200.25 14000.00\n")  # two hours
    machine.boot(0, command="hours", BATON_UPTIME=str(uptime))
    assert machine.turned_off == 1
    machine.boot(78)
    assert machine.turned_off == 2


def test_what_a_shutdown_cut_short_of_an_installation_is_ended_first(machine: Machine):
    machine.boot(75, 0)
    assert [call[0] for call in machine.stand_ins.calls if call[0] in ("dpkg", "docker")][:2] == ["dpkg", "docker"]
    assert ["dpkg", "--configure", "-a"] in machine.stand_ins.calls


def test_once_a_person_has_looked_its_hours_begin_anew(machine: Machine):
    machine.state.mkdir()
    (machine.state / "minutes").write_text("119\n")  # of 120
    machine.boot(0, command="hours")
    assert machine.turned_off == 1
    machine.boot(0, command="hours")  # while somebody looks around
    assert machine.turned_off == 1
    (machine.state / "given-up").unlink()
    for _ in range(3):
        machine.boot(0, command="hours")
    assert machine.turned_off == 1
    machine.boot(0)
    assert len(machine.runs) == 1


def test_a_container_that_its_hours_have_stopped_is_not_started_again(machine: Machine):
    machine.stand_ins.add("docker", f'[[ $1 != run ]] || {{ echo over >"{machine.state}/given-up"; exit 75; }}')
    machine.boot()
    assert (len(machine.runs), machine.turned_off) == (1, 0)  # `hours` does that


def shut_down_while(going: Path, machine: Machine, **extra: str) -> None:
    process = subprocess.Popen(["bash", machine.script], env=machine.environment(**extra))
    try:
        appears(going)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


def appears(file: Path) -> None:
    """Wait for it, a minute at most."""
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_shutdown_becomes_a_docker_stop_that_is_waited_for(machine: Machine, tmp_path: Path):
    going, stopped = tmp_path / "going", tmp_path / "stopped"
    machine.stand_ins.add(
        "docker",
        f'''
case $1 in
run) touch "{going}"; until [[ -e "{stopped}" ]]; do sleep 0.05; done; echo saved; exit 75 ;;
stop) touch "{stopped}" ;;
esac''',
    )
    process = subprocess.Popen(
        ["bash", machine.script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=machine.environment(BATON_AGAIN_AFTER="60"),
    )
    try:
        appears(going)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "saved" in said
    assert ["docker", "stop", "-t", "25", "baton"] in machine.stand_ins.calls
    assert machine.turned_off == 0


def test_a_shutdown_while_the_image_is_fetched_ends_that(machine: Machine, tmp_path: Path):
    """Else training would begin in a container that nobody stops any more."""
    going = tmp_path / "going"
    machine.stand_ins.add(
        "docker", f'case $1 in\nrun) touch "{going}"; exec sleep 600 ;;\nstop) echo No such container; exit 1 ;;\nesac'
    )
    shut_down_while(going, machine)
    assert machine.turned_off == 0


def test_on_azure_an_answer_that_is_lost_leaves_no_vm_that_is_paid_for(machine: Machine, tmp_path: Path):
    (machine.dmi / "chassis_asset_tag").write_text(AZURES_TAG + "\n")
    machine.stand_ins.add(
        "curl",
        'case "$*" in\n*oauth2/token*) echo \'{"access_token": "a-token"}\' ;;\n*resourceId*) echo -n /vm ;;\n'
        f"*deallocate*) echo >>{tmp_path}/asked; [[ $(wc -l <{tmp_path}/asked) -ge $(<{tmp_path}/good) ]] ;;\nesac",
    )
    for good, asked, told in ((3, 3, False), (9, 5, True)):
        (tmp_path / "good").write_text(str(good))
        (tmp_path / "asked").unlink(missing_ok=True)
        said = machine.boot(0)
        assert (tmp_path / "asked").read_text() == "\n" * asked
        assert ("NOT deallocated" in said) == told
    assert machine.turned_off == 2


def test_on_azure_it_deallocates_itself_by_a_token_that_no_argument_holds(machine: Machine, tmp_path: Path):
    (machine.dmi / "chassis_asset_tag").write_text(AZURES_TAG + "\n")
    heard = tmp_path / "heard"
    machine.stand_ins.add(
        "curl",
        'case "$*" in\n*oauth2/token*) echo \'{"access_token": "a-token"}\' ;;\n'
        f"*resourceId*) echo -n /subscriptions/s/vm ;;\n*deallocate*) cat >{heard} ;;\nesac",
    )
    machine.boot(0)
    posted = [call for call in machine.stand_ins.calls if call[0] == "curl" and "deallocate" in " ".join(call)]
    assert posted[0][-1].startswith("https://management.azure.com/subscriptions/s/vm/deallocate")
    assert heard.read_text() == "Authorization: Bearer a-token\n"
    assert "a-token" not in str(machine.stand_ins.calls)
    assert machine.turned_off == 1


def test_what_lets_it_in_to_another_clouds_store_is_given_where_it_is_there(machine: Machine):
    machine.boot(0)
    machine.google.write_text("{}")
    machine.identity.write_text("BATON_IDENTITY=google\n")
    machine.boot(0)
    without, given = (" ".join(words) for words in machine.runs)
    assert "google.json" not in without
    assert "--env-file" not in without
    assert f"--env-file {machine.identity}" in given
    assert f"-v {machine.google}:/run/secrets/google.json:ro" in given
    assert "-e GOOGLE_APPLICATION_CREDENTIALS=/run/secrets/google.json" in given


LOGINS = {
    "europe-west4-docker.pkg.dev/p/baton/baton:cpu": ("oauth2accesstoken", "europe-west4-docker.pkg.dev"),
    "name.azurecr.io/baton:cpu": ("00000000-0000-0000-0000-000000000000", "name.azurecr.io"),
}


@pytest.mark.parametrize("image", LOGINS)
def test_it_logs_in_to_its_clouds_registry_as_itself_by_a_token_on_standard_input(image: str, machine: Machine):
    user, host = LOGINS[image]
    heard, posted = machine.state / "heard", machine.state / "posted"
    machine.stand_ins.add("docker", f'[[ $1 != login ]] || cat >"{heard}"\nexit 0')
    machine.stand_ins.add(
        "curl",
        f'[[ $* != *access_token@-* ]] || cat >"{posted}"\n'
        'echo \'{"access_token": "a-token", "refresh_token": "a-token"}\'',
    )
    machine.boot(0, IMAGE=image)
    if host == "name.azurecr.io":
        assert posted.read_text() == "a-token"  # curl would send a newline as part of it
    assert ["docker", "login", "--username", user, "--password-stdin", host] in machine.stand_ins.calls
    assert heard.read_text() == "a-token\n"
    assert "a-token" not in str(machine.stand_ins.calls)


def test_on_aws_the_instances_role_is_asked_by_amazons_helper(machine: Machine):
    machine.stand_ins.add("docker-credential-ecr-login")
    machine.boot(0, IMAGE="123456789012.dkr.ecr.eu-west-1.amazonaws.com/baton:cpu")
    config: Any = yaml.safe_load((machine.state / "docker" / "config.json").read_text())
    assert config == {"credHelpers": {"123456789012.dkr.ecr.eu-west-1.amazonaws.com": "ecr-login"}}
    assert len(machine.runs) == 1


def test_what_the_system_lacks_is_fetched_even_while_it_updates_itself(machine: Machine):
    machine.stand_ins.add("apt-get")
    machine.boot(0, IMAGE="123456789012.dkr.ecr.eu-west-1.amazonaws.com/baton:cpu")
    update, install = (call for call in machine.stand_ins.calls if call[0] == "apt-get")  # a docker that is there stays
    assert "update" in update
    assert install[-2:] == ["install", "amazon-ecr-credential-helper"]
    assert "DPkg::Lock::Timeout=600" in install
    assert len(machine.runs) == 1


def without_docker(machine: Machine) -> str:
    """A PATH on which there is none until `apt-get` moves it there from the file `later`."""
    folder = machine.stand_ins.folder
    (folder / "docker").rename(folder / "later")
    system = folder.parent / "system"
    system.mkdir()
    for name in ("bash", "cat", "grep", "mkdir", "mv", "rm", "sleep", "touch", "wc"):
        (system / name).symlink_to(program(name))
    return f"{folder}:{system}"


@pytest.mark.parametrize("at", ["update", "install"])
@pytest.mark.parametrize("failures", [0, 2, 3])
def test_docker_is_fetched_in_three_tries_or_the_vm_is_off(failures: int, at: str, machine: Machine, tmp_path: Path):
    path, tries = without_docker(machine), tmp_path / "tries"
    machine.stand_ins.add(
        "apt-get",
        f'''
case "$*" in *update) what=update ;; *) what=install ;; esac
if [[ $what == {at} ]]; then
    echo >>"{tries}"
    (($(wc -l <"{tries}") > {failures})) || exit 100
fi
[[ $what == update ]] || mv "{machine.stand_ins.folder}/later" "{machine.stand_ins.folder}/docker"''',
    )
    said = machine.boot(0, PATH=path)
    assert machine.turned_off == 1
    assert len(machine.runs) == (failures < 3)
    assert (machine.state / "given-up").exists() == (failures == 3)
    assert ("exit code 1, three times in a row" in said) == (failures == 3)
    installs = [call for call in machine.stand_ins.calls if call[0] == "apt-get" and "install" in call]
    assert all(call[-3:] == ["install", "docker.io", "curl"] for call in installs)


def test_systemd_starts_it_where_there_is_no_docker_yet():
    """What a unit requires must be there; of what it wants systemd starts what is."""
    unit = written()["/etc/systemd/system/baton.service"]
    naming = {line.partition("=")[0] for line in unit.splitlines() if "docker.service" in line}
    assert naming == {"After", "Wants"}


def test_a_shutdown_while_docker_is_fetched_waits_for_apt(machine: Machine, tmp_path: Path):
    """dpkg that is killed at work would refuse every later try."""
    path, going, done = without_docker(machine), tmp_path / "going", tmp_path / "done"
    machine.stand_ins.add("apt-get", f'[[ $* == *update ]] || {{ touch "{going}"; sleep 1; touch "{done}"; }}')
    shut_down_while(going, machine, PATH=path)
    assert done.exists()
    assert (machine.runs, machine.turned_off) == ([], 0)


def test_where_docker_stands_still_the_vm_is_off_all_the_same(machine: Machine):
    """No registry login: three tries, then off, for nobody is watching."""
    machine.stand_ins.add("curl", "exit 7")
    machine.boot(0, IMAGE="name.azurecr.io/baton:cpu")
    assert (len(machine.runs), machine.turned_off) == (0, 1)
    assert os.path.getsize(machine.state / "given-up")
