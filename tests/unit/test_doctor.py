"""The doctor finds what would stop a run, says what mends it, leaves nothing behind, and never hangs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from console.checks import container as container_checks
from console.checks import content as content_checks
from console.checks import speed as speed_checks
from console.checks import store as store_checks
from console.checks.examination import Check, Found, Patient, Trouble, Warn, examine
from console.doctor import LANES
from storage import open_store
from storage.errors import NoSpace, NotSetUp, PermissionDenied
from tests.checkpoints import chain, history, save, snapshot
from tests.clouds import reached
from tests.docs.pages import documents
from tests.emulators.metadata import Metadata
from tests.emulators.moto import MotoS3
from tests.emulators.proxy import Fault, Proxy
from tests.runs import FAKETIME, REPOSITORY, command, environment
from trainer.data.pack import pack

CPUINFO = "model name\t: A Processor\nflags\t\t: fpu sse4_2 avx2 avx512f\n\nmodel name\t: A Processor\n"


class Sick:
    """A store with one thing wrong: `name` is done by `wrong`, with the real one at hand."""

    def __init__(self, url: str, name: str, wrong: Any) -> None:
        self._store, self._name, self._wrong = open_store(url), name, wrong

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name != self._name:
            return real
        return lambda *args, **options: self._wrong(real, *args, **options)


# How long what doesn't hang may take here, where a test can share the machine with much else
PATIENT = {"check_s": 100.0, "all_s": 300.0}


def examined(folder: Path, name: str = "", wrong: Any = None, **times: float) -> dict[str, Found]:
    """The store's checks alone."""
    patient = Patient("s3://bucket/runs", lambda url: Sick(f"file://{folder}", name, wrong))  # type: ignore[arg-type, return-value]
    return {found.check: found for found in examine(patient, (store_checks.CHECKS,), **(PATIENT | times))}


def raising(error: Exception) -> Any:
    def wrong(real: Any, *args: Any, **options: Any) -> None:
        raise error

    return wrong


def skewed(seconds: float) -> Any:
    def wrong(real: Any, *args: Any, **options: Any) -> Any:
        info = real(*args, **options)
        return replace(info, modified=info.modified + seconds)

    return wrong


def everything_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def unconditional(real: Any, key: str, source: Any, *, if_absent: bool = False) -> Any:
    return real(key, source)


SICK_STORES = {
    "wrong role": (
        "put",
        raising(PermissionDenied("lacks s3:PutObject")),
        "write",
        "failed",
        "s3:PutObject",
        "right to",
    ),
    "no right to list": ("list", raising(PermissionDenied("lacks s3:List")), "list", "failed", "s3:List", "right to"),
    "missing bucket": (
        "stat",
        raising(NotSetUp("no such bucket")),
        "reachable",
        "failed",
        "no such",
        "docs/credentials",
    ),
    "no conditional writes": ("put", unconditional, "create once", "failed", "own a run", "conditional writes"),
    "deletes do nothing": ("delete", lambda real, key: None, "delete", "failed", "still listed", "allow deletes"),
    "no ranges": ("get", lambda real, key, sink, **_: real(key, sink), "ranges", "failed", "range", "serves ranges"),
    "a clock 10 minutes off": ("put", skewed(600), "clock", "failed", "600 s behind", "chrony"),
    "a clock 2 minutes off": ("put", skewed(-120), "clock", "warning", "120 s ahead", "chrony"),
    "little room": ("free_bytes", lambda real: 1000, "room", "warning", "0 MB free", "make room"),
    "no room": ("put", raising(NoSpace("no space left for it")), "write", "failed", "no space left", "`clean --yes`"),
    "a caveat": ("caveat", lambda real: "it is in memory", "place", "warning", "in memory", "lost with"),
    "a defect": ("get", raising(KeyError("x")), "read", "failed", "KeyError", "tell us"),
}


@pytest.mark.parametrize("what", SICK_STORES)
def test_each_trouble_of_a_store_is_found_told_and_comes_with_its_mend(what: str, tmp_path: Path) -> None:
    name, wrong, check, status, words, mend = SICK_STORES[what]
    found = examined(tmp_path / "store", name, wrong)[check]
    assert found.status == status
    assert words in found.detail
    assert mend in found.mend


def test_what_depends_on_a_failed_check_is_not_tried(tmp_path: Path) -> None:
    found = examined(tmp_path / "store", "stat", raising(NotSetUp("no such bucket")))
    assert found["write"].status == "not tried"
    assert "reachable" in found["write"].detail


@pytest.mark.parametrize("name", ["stat", "put", "list", "delete"])
def test_a_store_that_hangs_is_given_up_in_time(name: str, tmp_path: Path) -> None:
    never = threading.Event()
    begun = time.monotonic()
    found = examined(tmp_path / "store", name, lambda real, *args, **options: never.wait(60), check_s=0.2, all_s=0.7)
    assert time.monotonic() - begun < 15
    assert any(f.status == "failed" and "no answer" in f.detail and f.mend for f in found.values())


def test_lanes_that_all_hang_take_no_longer_than_one() -> None:
    never = threading.Event()
    lanes = [[Check(str(n), f"{n}.{m}", lambda patient: str(never.wait(60))) for m in range(5)] for n in range(4)]
    begun = time.monotonic()
    found = examine(Patient("file:///nowhere"), lanes, check_s=0.5, all_s=1.2)
    assert time.monotonic() - begun < 15  # one lane after the other would take 10 checks of 0.5 s and more
    assert len(found) == 20
    assert all(f.mend for f in found if f.status == "failed")
    assert {f.detail for f in found if f.status == "not tried"} == {"no time left"}


# -- a whole machine, and what can be wrong with it -------------------------------------------------------------------


@dataclass
class Machine:
    """A healthy one on AWS in a container, as real files, a real store and a real metadata service."""

    folder: Path
    packed: Path
    service: Metadata
    cloud: str = "aws"
    environment: dict[str, str] = field(default_factory=dict)
    url: str = ""
    halt: Path = Path()
    opened: Callable[[str], Any] = open_store
    undo: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        root = self.folder / "root"
        for name, text in {
            ".dockerenv": "",
            "proc/1/comm": "tini\n",
            "proc/cpuinfo": CPUINFO,
            "sys/fs/cgroup/memory.max": "8000000000\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        }.items():
            self.write(name, text)
        self.halt = self.folder / "halt"
        self.halt.mkdir()
        self.write("proc/self/mountinfo", f"36 35 98:0 /srv/halt {self.halt} rw,noatime - ext4 /dev/root rw\n")
        (self.folder / "data").symlink_to(self.packed)
        self.url = f"file://{self.folder}/store"
        baked = {"resnet18.safetensors": b"weights", "bert/model.safetensors": b"more", "bert/config.json": b"{}"}
        for name, content in baked.items():
            self.write(f"weights/{name}", content.decode())
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in baked.items())
        self.write("weights/SHA256SUMS", sums)
        self.environment = {"XDG_CACHE_HOME": str(self.folder / "cache"), "BATON_REVISION": "0123456789abcdef"}
        assert root.is_dir()

    def write(self, name: str, text: str) -> None:
        path = self.folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def patient(self) -> Patient:
        return Patient(
            self.url,
            self.opened,
            halt=str(self.halt),
            data=self.folder / "data",
            weights=self.folder / "root" / "weights",
            cloud=self.cloud,
            environment=self.environment,
            root=self.folder / "root",
        )

    def examined(self, group: str = "") -> dict[str, Found]:
        """By all lanes, or by the one that has this group."""
        lanes = [lane for lane in LANES if group in ("", *(check.group for check in lane))]
        return {f"{f.group}: {f.check}": f for f in examine(self.patient, lanes, **PATIENT)}


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packed data sets, as in the image; a file that says it is no stand-in, for a healthy machine."""
    folder = tmp_path_factory.mktemp("packed")
    pack("cifar10", "synthetic", folder / "cifar10", say=lambda line: None)
    file = folder / "cifar10" / "packed.safetensors"
    body = file.read_bytes()
    length = int.from_bytes(body[:8], "little")
    header = body[8 : 8 + length].replace(b'"synthetic":"true"', b'"synthetic":"false"')
    header = header.replace(b'"synthetic": "true"', b'"synthetic": "false"').rstrip(b" ").ljust(length, b" ")
    file.write_bytes(body[:8] + header + body[8 + length :])
    return folder


@pytest.fixture
def machine(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with Metadata("aws") as service:
        monkeypatch.setenv("BATON_AWS_METADATA", service.url)
        machine = Machine(tmp_path, packed, service)
        with machine.undo:
            yield machine


def test_it_is_silent_about_a_healthy_machine(machine: Machine) -> None:
    found = machine.examined()
    assert {name: f for name, f in found.items() if f.status != "ok"} == {}
    assert "g5.xlarge in eu-north-1b, spot" in found["cloud: machine"].detail
    assert found["container: halt folder"].detail.endswith("outside: /srv/halt")
    assert not any(f.mend for f in found.values())
    assert not everything_in(machine.folder / "store")


def halt_is_a_file(machine: Machine) -> None:
    machine.halt.rmdir()
    machine.halt.write_text("")


def halt_is_the_containers_own(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", "")


def no_halt(machine: Machine) -> None:
    machine.halt.rmdir()


def halted(machine: Machine) -> None:
    (machine.halt / "halt").touch()


def a_shell_as_process_1(machine: Machine) -> None:
    machine.write("proc/1/comm", "bash\n")


def a_tiny_cgroup(machine: Machine) -> None:
    machine.write("sys/fs/cgroup/memory.max", "268435456\n")


def little_processor(machine: Machine) -> None:
    machine.write("sys/fs/cgroup/cpu.max", "50000 100000\n")


def little_processor_by_cgroup_v1(machine: Machine) -> None:
    (machine.folder / "root" / "sys/fs/cgroup/cpu.max").unlink()
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")


def an_old_processor(machine: Machine) -> None:
    machine.write("proc/cpuinfo", "model name : Old\nflags : fpu sse4_2\n")


def a_hidden_gpu(machine: Machine) -> None:
    machine.write("sys/bus/pci/devices/0000:00:1e.0/vendor", "0x10de\n")
    machine.write("sys/bus/pci/devices/0000:00:1e.0/class", "0x030200\n")


def a_grace_that_is_no_number(machine: Machine) -> None:
    machine.environment["BATON_STOP_GRACE"] = "10s"


def nowhere_to_write(machine: Machine) -> None:
    (machine.folder / "cache").write_text("a file, not a folder")


def no_data(machine: Machine) -> None:
    (machine.folder / "data").unlink()


def rotten_data(machine: Machine) -> None:
    (machine.folder / "data").unlink()
    rotten = machine.folder / "data" / "cifar10" / "packed.safetensors"
    rotten.parent.mkdir(parents=True)
    body = bytearray((machine.packed / "cifar10" / "packed.safetensors").read_bytes())
    body[-1] ^= 1
    rotten.write_bytes(body)


def rotten_weights(machine: Machine) -> None:
    machine.write("weights/resnet18.safetensors", "weightz")


def missing_weights(machine: Machine) -> None:
    (machine.folder / "root" / "weights" / "bert" / "config.json").unlink()


def an_image_that_nobody_can_build(machine: Machine) -> None:
    machine.environment["BATON_REVISION"] = "0123456789abcdef-dirty"


def hung_metadata(machine: Machine) -> None:
    machine.service.fault("hang")


def hop_limit_1(machine: Machine) -> None:
    """The token's answer alone has it: the request is taken, and nothing comes back."""
    machine.service.fault("hang", path="/latest/api/token", method="PUT")


def metadata_turned_off(machine: Machine) -> None:
    machine.service.fault("answer", status=403, path="/latest/api/token")


def told_to_go(machine: Machine) -> None:
    machine.service.notice()


def a_notice_that_is_no_number(machine: Machine) -> None:
    machine.cloud = "gcp"
    machine.undo.enter_context(reached({"BATON_GCP_NOTICE": "soon"}))


def slow_store(machine: Machine, bytes_per_s: float = 4e6) -> None:
    """With a checkpoint of 16 MB in it: too much for 1 s of grace, though not for a notice."""
    run = history(machine.folder / "store")
    save(run, 1, 100, state=replace(snapshot(100), model={"weight": torch.ones(4 << 20)}))
    machine.environment["BATON_STOP_GRACE"] = "1"

    def slow(real: Any, key: str, source: Any, **options: Any) -> Any:
        time.sleep(len(source) / bytes_per_s)
        return real(key, source, **options)

    machine.opened = lambda url: Sick(url, "put", slow)


def hopeless_store(machine: Machine) -> None:
    slow_store(machine, 0.1e6)


def a_store_that_is_a_file(machine: Machine) -> None:
    (machine.folder / "store").write_text("")


def a_read_only_store(machine: Machine) -> None:
    folder = machine.folder / "store"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount")
    machine.undo.callback(subprocess.run, ["umount", folder], check=True)


def no_scheduled_events_yet(machine: Machine) -> None:
    """Azure turns them on at the first question, and is silent until then."""
    machine.cloud = "azure"
    service = machine.undo.enter_context(Metadata("azure"))
    machine.undo.enter_context(reached({"BATON_AZURE_METADATA": service.url}))
    service.fault("hang", path="/metadata/scheduledevents")


FAULTS: dict[Callable[[Machine], None], tuple[str, str, str, str]] = {
    halt_is_a_file: ("container: halt folder", "failed", "is a file", "rm it on the host"),
    halt_is_the_containers_own: ("container: halt folder", "warning", "nobody outside", "docker run -v FOLDER:"),
    no_halt: ("container: halt folder", "warning", "isn't there", "docker run -v FOLDER:"),
    halted: ("container: halt folder", "warning", "training ends before", "rm "),
    a_shell_as_process_1: ("container: process 1", "warning", "bash", "exec"),
    a_tiny_cgroup: ("container: memory", "failed", "268 MB", "--memory 4g"),
    a_grace_that_is_no_number: ("container: stop grace", "failed", "10s", "BATON_STOP_GRACE=10"),
    nowhere_to_write: ("container: writable", "failed", "can't be written", "--tmpfs /tmp"),
    little_processor: ("compute: threads", "warning", "0.5 of one", "--cpus 2"),
    little_processor_by_cgroup_v1: ("compute: threads", "warning", "0.5 of one", "--cpus 2"),
    an_old_processor: ("compute: processor", "warning", "sse4_2", "ten years"),
    a_hidden_gpu: ("compute: GPU", "warning", "can't see", "--gpus all"),
    no_data: ("content: data", "warning", "none packed", "entrypoint.py data cifar10"),
    rotten_data: ("content: data", "failed", "its bytes have changed", "pack it"),
    rotten_weights: ("content: weights", "failed", "resnet18.safetensors: its bytes have changed", "pull the image"),
    missing_weights: ("content: weights", "failed", "bert/config.json can't be read", "pull the image"),
    an_image_that_nobody_can_build: ("content: revision", "warning", "-dirty", "commit"),
    hung_metadata: ("cloud: machine", "warning", "doesn't say", "hop-limit 2"),
    hop_limit_1: ("cloud: notices", "failed", "hop limit", "--http-put-response-hop-limit 2"),
    metadata_turned_off: ("cloud: notices", "failed", "turned off", "--http-endpoint enabled"),
    told_to_go: ("cloud: notices", "warning", "AWS takes this machine away", "another machine"),
    a_notice_that_is_no_number: ("cloud: notices", "failed", "BATON_GCP_NOTICE=soon", "correct that variable"),
    slow_store: ("time: save", "warning", "docker stop gives 1 s", "--stop-timeout"),
    hopeless_store: ("time: save", "failed", "notices give 30 s", "region"),
    a_store_that_is_a_file: ("store: write", "failed", "is no folder", "choose another --store"),
    a_read_only_store: ("store: write", "failed", "read-only file system", "mount it writable"),
    no_scheduled_events_yet: ("cloud: notices", "warning", "are being turned on", "ask again in 2 minutes"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_of_a_machine_is_found_and_comes_with_its_mend(
    fault: Callable[[Machine], None], machine: Machine
) -> None:
    name, status, words, mend = FAULTS[fault]
    fault(machine)
    found = machine.examined(name.split(":")[0])[name]
    assert found.status == status, found
    assert words in found.detail
    assert mend in found.mend


@pytest.mark.parametrize(("damaged", "said"), [(1, "step 200"), (2, "no checkpoint there yet")])
def test_a_damaged_manifest_is_no_defect_and_the_one_before_it_tells_how_large_a_save_is(
    damaged: int, said: str, machine: Machine
) -> None:
    run = history(machine.folder / "store")
    for manifest in chain(run, 1, [200, 201])[-damaged:]:
        run.store.put(f"run/checkpoints/{manifest.name}.json", b"{")
    found = machine.examined("time")["time: save"]
    assert (found.status, said in found.detail) == ("ok", True), found


def test_the_largest_of_all_runs_tells_how_large_a_save_is(machine: Machine) -> None:
    for number in range(30):
        save(history(machine.folder / "store", f"run{number:02d}"), 1, 100)
    large = {"model": {"weight": torch.ones(1 << 18)}}
    save(history(machine.folder / "store", "zoo"), 1, 100, state=replace(snapshot(100), **large))
    found = machine.examined("time")["time: save"]
    assert (found.status, "(zoo, step 100)" in found.detail) == ("ok", True), found


def test_what_is_too_large_to_be_read_in_its_time_is_not_taken_for_a_disk_that_hangs(machine: Machine) -> None:
    patient = machine.patient
    patient.check_s = -1.0
    assert "too large" in content_checks.data(patient)
    assert "too large" in content_checks.weights(patient)


def test_a_halt_folder_that_this_user_cant_read_is_found(machine: Machine) -> None:
    machine.halt.chmod(0)
    user = os.getuid()
    os.setreuid(user or 65534, -1)  # root may read everything; access(2) goes by this one of a process's users
    try:
        found = machine.examined()["container: halt folder"]
    finally:
        os.setreuid(user, -1)
    assert (found.status, "chmod a+rx" in found.mend) == ("failed", True)


def test_a_halt_folder_is_named_as_docker_takes_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(machine.halt.parent)
    patient = machine.patient
    patient.halt = machine.halt.name
    assert str(machine.halt) in container_checks.halt_folder(patient)  # by which it is found among the mounts
    machine.halt.rmdir()
    with pytest.raises(Warn) as told:
        container_checks.halt_folder(patient)
    assert f"docker run -v FOLDER:{machine.halt} " in told.value.mend


# -- against the emulators, as the command ----------------------------------------------------------------------------


@contextmanager
def emulator_of(request: pytest.FixtureRequest, scheme: str) -> Iterator[Any]:
    names = {"s3": "moto_emulator", "gs": "gcs_emulator", "az": "azurite_emulator"}
    emulator = request.getfixturevalue(names[scheme])
    with ExitStack() as stack:
        stack.enter_context(reached(emulator.env))
        yield emulator


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_missing_bucket_fails_and_nothing_more_of_the_store_is_tried(
    scheme: str, request: pytest.FixtureRequest
) -> None:
    with emulator_of(request, scheme) as emulator:
        code, text = command(
            "doctor", "--seconds", "300", "--json", "--cloud", "none", "--store", emulator.url("no-such-bucket", "x")
        )
    found = {f["check"]: f for f in json.loads(text) if f["group"] == "store"}
    assert code == 78
    assert found["reachable"]["status"] == "failed"
    assert found["reachable"]["mend"]
    assert found["write"]["status"] == "not tried"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_whose_credentials_it_uses_is_told_by_kind_never_by_value(scheme: str, request: pytest.FixtureRequest) -> None:
    with emulator_of(request, scheme) as emulator:
        emulator.make_bucket("doctors-bucket")
        code, text = command(
            "doctor", "--seconds", "300", "--json", "--cloud", "none", "--store", emulator.url("doctors-bucket", "x")
        )
        secrets = [value for name, value in emulator.env.items() if "KEY" in name or "STRING" in name]
    assert code == 0, text
    found = {f["check"]: f for f in json.loads(text) if f["group"] == "store"}
    who = {"s3": "environment", "gs": "none, as STORAGE_EMULATOR_HOST is set", "az": "key of"}
    assert who[scheme] in found["credentials"]["detail"]
    assert secrets or scheme == "gs"
    assert not any(secret in text for secret in secrets)


def test_a_bucket_that_keeps_abandoned_uploads_is_told_where_one_may_ask(moto_emulator: MotoS3) -> None:
    """The rule that mends it is the page's own."""
    moto_emulator.make_bucket("doctors-rules")
    pasted = map(json.loads, documents(REPOSITORY / "docs/stores.md"))
    (rule,) = next(told["Rules"] for told in pasted if "Rules" in told)
    with (
        Proxy(("127.0.0.1", moto_emulator.port)) as proxy,
        reached({**moto_emulator.env, "AWS_ENDPOINT_URL_S3": proxy.url}),
    ):
        store = open_store(moto_emulator.url("doctors-rules", "x"))
        patient = Patient(store.url, lambda _: store)
        (found,) = (f for f in examine(patient, (store_checks.CHECKS,), **PATIENT) if f.check == "leftovers")
        assert (found.status, "no rule for abandoned uploads" in found.detail) == ("warning", True)
        assert "docs/stores.md" in found.mend
        look = partial(store_checks.leftovers, patient)
        proxy.faults = [Fault("answer", status=403, body=b"<Error><Code>AccessDenied</Code></Error>")]
        with pytest.raises(Trouble, match="could not be asked for") as told:
            look()
        assert (told.value.status, "docs/stores.md" in told.value.mend) == ("not tried", True)
        proxy.faults = []
        rules = moto_emulator.client().put_bucket_lifecycle_configuration
        expires = {"ID": "old", "Status": "Enabled", "Filter": {}, "Expiration": {"Days": 9}}
        rules(Bucket="doctors-rules", LifecycleConfiguration={"Rules": [expires]})
        assert store.keeps_abandoned_uploads()  # type: ignore[attr-defined]
        for others, covered in (({"Status": "Disabled"}, False), ({"Filter": {"Prefix": "y"}}, False), ({}, True)):
            rules(Bucket="doctors-rules", LifecycleConfiguration={"Rules": [rule | others]})
            assert store.keeps_abandoned_uploads() is not covered  # type: ignore[attr-defined]
        look()


def test_nothing_good_is_said_of_abandoned_uploads_on_google(request: pytest.FixtureRequest) -> None:
    """docs/stores.md: they pile up without a rule, and who may write objects may not ask for that."""
    with emulator_of(request, "gs") as emulator:
        emulator.make_bucket("doctors-google")
        store = open_store(emulator.url("doctors-google", "x"))
        with pytest.raises(Trouble, match="could not be asked for") as told:
            store_checks.leftovers(Patient(store.url, lambda _: store))
    assert (told.value.status, "docs/stores.md" in told.value.mend) == ("not tried", True)


def test_credentials_that_are_refused_are_told_all_the_same(moto_emulator: MotoS3) -> None:
    with (
        Proxy(("127.0.0.1", moto_emulator.port)) as proxy,
        reached({**moto_emulator.env, "AWS_ENDPOINT_URL_S3": proxy.url}),
    ):
        proxy.faults = [Fault("answer", status=403, body=b"<Error><Code>SignatureDoesNotMatch</Code></Error>")]
        url = moto_emulator.url("doctors-bucket", "x")
        code, text = command("doctor", "--seconds", "300", "--json", "--cloud", "none", "--store", url)
    found = {f["check"]: f for f in json.loads(text) if f["group"] == "store"}
    assert code == 78
    assert found["reachable"]["status"] == "failed"
    assert (found["credentials"]["status"], found["credentials"]["detail"]) == (
        "ok",
        "environment variable AWS_ACCESS_KEY_ID",
    )


def test_where_no_credentials_are_known_yet_none_are_called_good(tmp_path: Path) -> None:
    assert (
        examined(tmp_path / "store", "stat", raising(NotSetUp("no credentials")))["credentials"].status == "not tried"
    )


def no_parts(real: Any, key: str, source: Any, **options: Any) -> Any:
    if len(source) > 8 << 20:
        raise PermissionDenied("it takes storage.multipartUploads.create")
    return real(key, source, **options)


def test_an_upload_in_parts_is_tried_on_a_slow_link_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_checks, "MOST", speed_checks.PIECE)  # as far as a slow link comes in its time
    good = machine.examined("time")["time: in parts"]
    machine.opened = lambda url: Sick(url, "put", no_parts)
    refused = machine.examined("time")["time: in parts"]
    assert (good.status, refused.status) == ("ok", "failed")
    assert "storage.multipartUploads.create" in refused.detail
    assert not everything_in(machine.folder / "store")


def test_where_there_is_no_time_for_an_upload_in_parts_that_is_said(tmp_path: Path) -> None:
    patient = Patient(f"file://{tmp_path}", bytes_per_s=1e6)
    with pytest.raises(Trouble, match="was not written: at this speed it may need 9 s") as told:
        speed_checks.in_parts(patient)
    assert (told.value.status, "--seconds 67" in told.value.mend) == ("not tried", True)
    assert not everything_in(tmp_path)


def test_the_command_speaks_in_whole_lines_and_exit_codes(tmp_path: Path) -> None:
    code, text = command("doctor", "--seconds", "300", "--cloud", "none", "--store", f"file://{tmp_path}/store")
    assert (code, text.splitlines()[-1][:14]) == (0, "ready to train")
    assert "\x1b" not in text
    code, text = command(
        "doctor", "--seconds", "300", "--cloud", "none", "--store", f"file://{tmp_path}/store", "--json"
    )
    assert [f["check"] for f in json.loads(text)] == [check.name for lane in LANES for check in lane]
    assert {f["group"] for f in json.loads(text)} == {"store", "time", "cloud", "container", "compute", "content"}
    code, text = command("doctor", "--seconds", "300", "--cloud", "none", "--store", "ftp://x")
    assert code == 78
    assert "unknown scheme" in text
    assert "not ready to train" in text
    if os.getuid() == 0:
        code, text = command(
            "doctor", "--seconds", "300", "--cloud", "none", "--store", "file:///proc/nothing-can-be-written-here"
        )
        assert code == 78
        assert "to mend it" in text


@pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime (Debian: faketime)")
def test_a_clock_that_is_really_off_is_found(tmp_path: Path) -> None:
    """libfaketime moves the process's clock; the files' times, which are the store's clock here, stay the kernel's."""
    program = f"""
from console.checks import store
from console.checks.examination import Patient, examine
for found in examine(Patient("file://{tmp_path}/store"), [store.CHECKS], check_s=100, all_s=300):
    if found.check == "clock":
        print(found.status, found.detail, found.mend)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=environment(LD_PRELOAD=str(FAKETIME), FAKETIME="-10m", NO_FAKE_STAT="1", FAKETIME_DONT_FAKE_MONOTONIC="1"),
    )
    assert done.stdout.startswith("failed this machine's clock is "), done.stdout + done.stderr
    assert "behind the store's" in done.stdout
    assert "chrony" in done.stdout


def test_all_that_hangs_at_once_ends_in_time_all_the_same(machine: Machine) -> None:
    """Store, metadata and a disk; with a sixth of a real examination's seconds, and its 15 for a busy machine."""
    never = threading.Event()
    machine.service.fault("hang")
    machine.opened = lambda url: Sick(url, "stat", lambda real, key: never.wait(60))
    hung = tuple(Check("content", str(n), lambda patient: str(never.wait(60))) for n in range(9))
    begun = time.monotonic()
    found = examine(machine.patient, (*LANES, hung), check_s=1, all_s=2)
    assert time.monotonic() - begun < 15
    assert {f.check: f.status for f in found}["reachable"] == "failed"
    assert sum(f.status == "failed" for f in found) >= 4
