"""Several processes on one run: the same run as one process, whatever happens to any of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from console.report import prices, tables
from storage import open_store
from tests.chaos.test_new_job import NO_DATA, newcomers
from tests.jobs import JOBS, options_for, packed
from tests.runs import REPOSITORY, Container, Lab, environment
from trainer.history import History
from trainer.ledger import account
from trainer.records import read

# no BatchNorm, and as many micro-batches as processes: then the count changes no bit, where all compute with one thread
OPTIONS = ["--preset", "tutorial", "--batch-size", "20", "--dropout", "0.1", "--epochs", "6"]
HALVES = ("--micro-batch-size", "10")
HALVES_OF_50 = ("--micro-batch-size", "25")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
soak = pytest.mark.skipif(not os.environ.get("BATON_SOAK"), reason="in `make soak`")


def processes_of(parent: int, count: int = 2) -> dict[int, int]:
    """RANK -> pid of a launcher's processes, once all of them train."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    variables = (folder / "environ").read_text().split("\0")
                    ranks = [int(v.removeprefix("RANK=")) for v in variables if v.startswith("RANK=")]
                    found.update(dict.fromkeys(ranks, int(folder.name)))
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {count} processes of {parent}")


def assert_gone(pids: dict[int, int]) -> None:
    give_up = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids.values()):
        assert time.monotonic() < give_up, f"left behind: {pids}"
        time.sleep(0.05)


def begun(lab: Lab, *options: str) -> tuple[Container, dict[int, int]]:
    """Two processes, once they have saved."""
    container = lab.start("--nproc", "2", "--checkpoint-every", "40steps", *options, **ONE_THREAD)
    assert container.wait_for("durable after") is not None, container.text
    return container, processes_of(container.process.pid)


def alone(lab: Lab, *options: str) -> Container:
    """One process, told to go once it has saved."""
    container = lab.start("--checkpoint-every", "40steps", *options, **ONE_THREAD)
    assert container.wait_for("durable after") is not None, container.text
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    return container


def test_one_two_one_two_processes_make_the_run_of_one_whichever_of_them_is_told_to_go_or_killed(
    tmp_path: Path, small_cifar: Path
) -> None:
    quiet = Lab(tmp_path / "quiet", small_cifar, *OPTIONS)
    container = quiet.start(*HALVES, **ONE_THREAD)
    assert container.wait() == 0, container.text

    hunted = Lab(tmp_path / "hunted", small_cifar, *OPTIONS)
    alone(hunted, *HALVES)

    # process 1 alone hears of a notice: all stop at the same step, and nothing is lost
    container, pids = begun(hunted)
    assert "processes 1 -> 2" in container.text
    os.kill(pids[1], signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert re.search(r"last checkpoint durable at step [0-9]+, 0 steps lost", container.text), container.text
    assert re.search(r"stopping at step [0-9]+: .*SIGTERM", container.text), container.text
    assert "is gone" not in container.text, "they agree: none finds out by the other's silence"
    assert_gone(pids)

    assert "processes 2 -> 1" in alone(hunted).text  # nobody says the micro-batch any more: it is the run's

    # process 1 is killed: the run goes on by itself, as a new attempt, to its end
    container, pids = begun(hunted)
    os.kill(pids[1], signal.SIGKILL)
    assert container.wait() == 0, container.text
    assert "process 1 of 2 was killed (SIGKILL): starting again from the newest checkpoint" in container.text
    assert "attempt 5 goes on at step" in container.text
    assert container.text.count("finished:") == 1, "process 0 alone speaks"
    assert not re.search(r"Traceback|elastic|torchrun|[WE][0-9]{4} ", container.text), "a word of the launcher's own"
    assert_gone(pids)

    assert hunted.hashes() == quiet.hashes()
    results = [json.loads((lab.store / "cifar10" / "result.json").read_bytes()) for lab in (quiet, hunted)]
    assert results[0]["metrics"] == results[1]["metrics"]


@soak
def test_halted_or_with_their_launcher_killed_two_processes_lose_no_bit(tmp_path: Path, small_cifar: Path) -> None:
    quiet = Lab(tmp_path / "quiet", small_cifar, *OPTIONS)
    container = quiet.start("--nproc", "2", **ONE_THREAD)
    assert container.wait() == 0, container.text
    assert "on cpu (2 processes of 1 thread, " in container.text
    hunted = Lab(tmp_path / "hunted", small_cifar, *OPTIONS)
    for _ in range(2):
        container, pids = begun(hunted)
        container.signal(signal.SIGKILL)
        assert container.wait() == -signal.SIGKILL
        assert_gone(pids)
        container, pids = begun(hunted)
        (hunted.halt / "halt").touch()
        assert container.wait() == 0, container.text
        (hunted.halt / "halt").unlink()
        assert "finished:" not in container.text, "the run is too short for this machine"
        assert_gone(pids)
    container = hunted.start("--nproc", "2", **ONE_THREAD)
    assert container.wait() == 0, container.text
    assert hunted.hashes() == quiet.hashes()


@soak
@pytest.mark.parametrize("number", [0, 1])
def test_one_that_is_killed_again_and_again_ends_in_74(number: int, tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "500")
    container = lab.start("--nproc", "2", "--checkpoint-every", "40steps", **ONE_THREAD)
    for attempt in range(1, 5):
        assert container.wait_for(f"checkpoint {attempt:06d}-[0-9]+ durable after") is not None, container.text
        os.kill(processes_of(container.process.pid)[number], signal.SIGKILL)
    assert container.wait() == 74, container.text
    assert f"process {number} of 2 was killed again (SIGKILL), after 3 restarts" in container.lines[-1]


LAUNCHER = """
import sys
from trainer import processes
from watchers import Mailbox
sys.exit(processes.train(2, sys.argv[1:], Mailbox()))
"""
FIRST_ENDS = """
import os, signal, sys, time
from watchers import Mailbox, signals
with open(sys.argv[1], "a") as file:
    file.write(os.environ["RANK"])
if os.environ["RANK"] == "1":
    sys.exit(78)
while sys.argv[2] == "hangs" or signal.SIGUSR1 not in signal.sigpending():
    time.sleep(0.05)  # it is still being loaded
mailbox = Mailbox()
signals.heed_launcher(mailbox, 10.0)
sys.exit(75 if mailbox.stop is not None and mailbox.stop.detail == signals.OTHER_GONE else 1)
"""


@pytest.mark.parametrize("other", ["starts", pytest.param("hangs", marks=soak)])
def test_who_is_ended_by_the_launcher_while_it_starts_hides_nobodys_exit_code(other: str, tmp_path: Path) -> None:
    """It takes it once it can, or is killed after 30 s; neither is a reason to start again."""
    (tmp_path / "one.py").write_text(FIRST_ENDS)
    program = [sys.executable, "-c", LAUNCHER, str(tmp_path / "one.py"), str(tmp_path / "started"), other]
    done = subprocess.run(program, capture_output=True, text=True, env=environment(PYTHONPATH=str(REPOSITORY)))
    assert (done.returncode, done.stdout, done.stderr) == (78, "", ""), done
    assert sorted((tmp_path / "started").read_text()) == ["0", "1"]


@soak
def test_a_mistake_that_all_of_them_find_is_one_line(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar)
    for options, code in ((["--preset", "nope"], 64), (["--data", str(tmp_path / "nowhere")], 78)):
        container = lab.start("--nproc", "2", *options, debug=False, BATON_UNKNOWN="1")
        assert container.wait() == code, container.text
        assert len(container.lines) == 2, container.text
        assert "BATON_UNKNOWN means nothing here" in container.lines[0]


def test_a_mistake_that_process_0_alone_finds_is_one_line_too(tmp_path: Path, small_cifar: Path) -> None:
    """The others are waiting for it, and end before it does."""
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    lab.finish("--steps", "1")
    container = lab.start("--nproc", "2", "--steps", "1", debug=False)
    assert container.wait() == 78, container.text
    (line,) = container.lines
    assert "computes its batch of 20 in 1 micro-batch, too few to share" in line


def torchrun_variables(number: int, port: int, count: int = 2) -> dict[str, str]:
    return {"RANK": str(number), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def nodes(lab: Lab, *options: str, count: int = 2) -> list[Container]:
    port = free_port()
    return [lab.start(*options, **torchrun_variables(n, port, count), **ONE_THREAD) for n in range(count)]


def test_machines_meet_by_torchruns_variables_and_heed_each_others_notices(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "500", "--checkpoint-every", "40steps")
    first, second = nodes(lab, "--instance-type", "desk", "--price-per-hour", "0.5")
    assert first.wait_for("durable after") is not None, first.text
    second.signal(signal.SIGTERM)
    assert (first.wait(), second.wait()) == (75, 75), first.text + second.text
    assert "0 steps lost" in first.text
    assert [m["attempt"] for m in lab.manifests()].count(1) == len(lab.manifests()), "process 0 alone claims"
    records = read(History(open_store(lab.url), "cifar10"))
    assert records is not None
    (row,) = tables.attempts(account(records), prices.load())
    assert (row["instance"].text, row["rate $/h"].value) == ("2 x desk", 1.0), "both are on the bill"
    assert lab.status()["machines"] == 2


def test_a_store_that_fails_another_machine_before_it_starts_is_told_by_process_0_with_its_code(
    tmp_path: Path,
) -> None:
    """At once: who tells nobody is waited for for half an hour."""
    data, port = packed("imagenet", tmp_path), free_port()
    lab = Lab(tmp_path, data, *options_for("imagenet", data), job="imagenet")
    nobody = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    nothing = {**dict.fromkeys(nobody, ""), "AWS_EC2_METADATA_DISABLED": "true"}
    ours, theirs = ({**torchrun_variables(number, port), **ONE_THREAD} for number in range(2))
    started = [
        lab.start(**ours),
        lab.start("--data", "s3://baton-nobodys/photos.tar", **theirs, **nothing),
    ]
    assert [one.wait() for one in started] == [78, 78], started[0].text + started[1].text
    assert "process 1 of 2: s3://baton-nobodys: no AWS credentials" in started[0].lines[-1]


def test_machines_that_would_compute_otherwise_begin_nothing(tmp_path: Path, small_cifar: Path) -> None:
    lab, port = Lab(tmp_path, small_cifar, *OPTIONS), free_port()
    ours, theirs = ({**torchrun_variables(number, port), **ONE_THREAD} for number in range(2))
    started = [lab.start("--lr", "0.01", **ours), lab.start(BATON_LR="0.02", **theirs)]
    assert [one.wait() for one in started] == [78, 78], started[0].text + started[1].text
    assert "process 1 of 2 computes otherwise than process 0 (lr 0.02, not 0.01)" in started[0].lines[-1]
    assert not lab.manifests()


@soak
def test_a_mistake_that_one_machine_alone_meets_before_it_starts_ends_all_and_is_shown_there(tmp_path: Path) -> None:
    newcomers(tmp_path)
    mistake = "import os\n    os.environ['RANK'] == '0' or {}['key']\n    return Regression("
    (tmp_path / "trainer" / "jobs" / "reg.py").write_text(NO_DATA.replace("return Regression(", mistake))
    port = free_port()
    command = [sys.executable, "entrypoint.py", "reg", "--store", f"file://{tmp_path}/store", "--micro-batch-size", "5"]
    started = [
        Container.of(command, cwd=tmp_path, **torchrun_variables(number, port), **ONE_THREAD) for number in range(2)
    ]
    assert [one.wait() for one in started] == [1, 1], started[0].text + started[1].text
    assert started[0].lines[-1].endswith("process 1 of 2: KeyError: 'key'")
    assert "reg.py, line " in started[1].lines[-1]


def test_what_cannot_be_is_one_line(tmp_path: Path, small_cifar: Path) -> None:
    cases = [
        (("--nproc", "two"), {}, 64, "--nproc two: must be auto or a number from 1 to 1024"),
        (("--nproc", "0"), {}, 64, "--nproc 0: must be"),
        ((), {"WORLD_SIZE": "2", "RANK": "0"}, 78, "WORLD_SIZE=2: set MASTER_ADDR, MASTER_PORT as well"),
        ((), {**torchrun_variables(2, 29500)}, 78, "RANK=2 and WORLD_SIZE=2 do not fit"),
        ((), {**torchrun_variables(0, 29500), "MASTER_PORT": "http"}, 78, "MASTER_PORT=http: must be a whole number"),
    ]
    for options, variables, code, line in cases:
        container = Lab(tmp_path, small_cifar).start(*options, debug=False, **variables)
        assert container.wait() == code, container.text
        assert line in container.text
        assert len(container.lines) == 1, container.text


@soak
def test_too_few_micro_batches_are_refused_with_the_way_on(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    whole = lab.start("--checkpoint-every", "40steps", **ONE_THREAD)
    assert whole.wait_for("durable after") is not None
    whole.signal(signal.SIGTERM)
    assert whole.wait() == 75
    refused = lab.start("--nproc", "2", **ONE_THREAD)
    assert refused.wait() == 78, refused.text
    assert "computes its batch of 20 in 1 micro-batch, too few to share: add --allow-change micro_b" in refused.text
    assert "attempt 2" not in refused.text
    allowed = lab.start("--nproc", "2", "--allow-change", "micro_batch_size", **ONE_THREAD)
    assert allowed.wait() == 0, allowed.text


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=soak)])
def test_with_batchnorm_and_uneven_micro_batches_no_bit_is_lost_either(
    count: int, tmp_path: Path, small_cifar: Path
) -> None:
    """At one count of processes; 5 micro-batches of 24, the last one of 4."""
    options = [
        "--batch-size",
        "100",
        "--micro-batch-size",
        "24",
        "--dropout",
        "0.1",
        "--epochs",
        "3",
        "--precision",
        "fp32",
    ]
    quiet = Lab(tmp_path / "quiet", small_cifar, *options)
    container = quiet.start("--nproc", str(count), **ONE_THREAD)
    assert container.wait() == 0, container.text
    hunted = Lab(tmp_path / "hunted", small_cifar, *options)
    for number in range(count):  # a machine is lost without a word: the others go, process 0 with all saved
        started = nodes(hunted, "--checkpoint-every", "7steps", "--preempted-exit-code", "99", count=count)
        assert started[0].wait_for("durable after") is not None, started[0].text
        started[number].signal(signal.SIGKILL)
        ends = [one.wait() for one in started]
        assert [code for n, code in enumerate(ends) if n != number] == [99] * (count - 1), started[0].text
    assert [one.wait() for one in nodes(hunted, count=count)] == [0] * count
    assert hunted.hashes() == quiet.hashes()
    result = json.loads((quiet.store / "cifar10" / "result.json").read_bytes())
    mine = evaluated_here(quiet)
    assert mine["accuracy"] == result["metrics"]["accuracy"]
    assert mine["loss"] == pytest.approx(result["metrics"]["loss"], rel=1e-5), "with process 0's means and variances"


@soak
def test_with_batchnorm_one_two_one_two_processes_stay_as_near_to_one_as_other_seeds_do(
    tmp_path: Path, small_cifar: Path
) -> None:
    """Each process's means and variances are of its own micro-batches; those of process 0 are evaluated with."""
    options = ["--batch-size", "100", "--micro-batch-size", "50", "--precision", "fp32", "--epochs", "8"]
    seeds = [Lab(tmp_path / f"seed {seed}", small_cifar, *options, "--seed", str(seed)) for seed in range(3)]
    for lab in seeds:
        container = lab.start(**ONE_THREAD)
        assert container.wait(300) == 0, container.text
    moved = Lab(tmp_path / "moved", small_cifar, *options)
    alone(moved)
    container, pids = begun(moved)
    assert "processes 1 -> 2" in container.text
    os.kill(pids[1], signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert "processes 2 -> 1" in alone(moved).text
    container, _ = begun(moved)
    assert container.wait(300) == 0, container.text
    assert moved.hashes()["order_sha256"] == seeds[0].hashes()["order_sha256"]
    metrics: list[Any] = [lab.status()["metrics"] for lab in (*seeds, moved)]
    assert metrics[-1]["loss"] != metrics[0]["loss"], "the count changes bits, else this test shows nothing"
    for name in ("accuracy", "loss"):
        *spread, mine = (found[name] for found in metrics)
        # three seeds show about half of what many would
        assert abs(mine - spread[0]) <= 2 * (max(spread) - min(spread)), f"{name}: {mine}, by seeds {spread}"


def evaluated_here(lab: Lab) -> dict[str, Any]:
    """What the run's newest checkpoint reaches, by one process."""
    import torch

    from trainer import job as jobs
    from trainer.checkpoint import restore
    from trainer.data.packed import open_packed
    from trainer.settings import Settings

    task = jobs.load("cifar10").build(
        Settings.of({"batch_size": 100}, jobs.preset(jobs.load("cifar10"), "")[1]),
        open_packed(lab.data),
        torch.device("cpu"),
    )
    newest = History(open_store(lab.url), "cifar10").newest_good()
    assert newest is not None
    restore(task, newest)
    task.model.eval()
    sums: dict[str, Any] = {}
    with torch.inference_mode():
        for start in range(0, task.eval_size, task.eval_batch):
            for name, value in task.evaluate(slice(start, min(start + task.eval_batch, task.eval_size))).items():
                sums[name] = sums.get(name, 0) + value.double()
    return dict(task.metrics(sums))


@soak
def test_a_second_copy_supersedes_two_processes(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "500", "--checkpoint-every", "40steps")
    old = lab.start("--nproc", "2", "--superseded-exit-code", "76", **ONE_THREAD)
    assert old.wait_for("durable after") is not None, old.text
    new = lab.start(*HALVES, **ONE_THREAD)
    assert old.wait() == 76, old.text
    assert "superseded" in old.text
    new.signal(signal.SIGTERM)
    assert new.wait() == 75, new.text


@soak
def test_ctrl_c_is_heeded_once_by_all_and_saves(tmp_path: Path, small_cifar: Path) -> None:
    """To a process of its own that hears of it twice, it would mean: end at once."""
    container, pids = begun(Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "500"))
    container.signal(signal.SIGINT)
    assert container.wait() == 130, container.text
    assert "0 steps lost" in container.text
    assert_gone(pids)


@soak
@pytest.mark.parametrize("delay", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
def test_a_sigterm_during_start_up_is_obeyed(delay: float, tmp_path: Path, small_cifar: Path) -> None:
    container = Lab(tmp_path, small_cifar, *OPTIONS, "--epochs", "500").start("--nproc", "2", **ONE_THREAD)
    time.sleep(delay)
    container.signal(signal.SIGTERM)
    assert container.wait(30) in (75, -signal.SIGTERM), container.text
    assert "Traceback" not in container.text


@soak
def test_torchrun_itself_may_start_them(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    places = ("--store", lab.url, "--halt", str(lab.halt), "--data", str(lab.data))
    done = subprocess.run(
        [*torchrun, *lab.command("cifar10", *places, *OPTIONS)[1:]],
        env=environment(**ONE_THREAD),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("finished:") == 1


def test_what_a_job_begins_an_optimizer_with_all_processes_have(tmp_path: Path) -> None:
    """A frozen network's pooler that began by chance is trained, by a state that process 0 alone has made."""
    data = packed("bert", tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if "pooler" not in name}, weights)
    # without dropout, which counts its draws by the process
    options = [*options_for("bert", data), "--dropout", "0", "--freeze", "--micro-batch-size", "8", "--steps", "12"]
    lab = Lab(tmp_path, data, *options, job="bert")
    for run, more in (("one", ()), ("two", ("--nproc", "2"))):
        container = lab.start("--run", run, *more, **ONE_THREAD)
        assert container.wait(120) == 0, container.text
    one, two = (json.loads((lab.store / run / "result.json").read_bytes()) for run in ("one", "two"))
    assert one["state_sha256"] == two["state_sha256"]


@soak
@pytest.mark.parametrize("job", JOBS)
def test_every_job_is_shared_by_two_processes_unasked(job: str, tmp_path: Path) -> None:
    data = packed(job, tmp_path)
    options = [*options_for(job, data), "--epochs", "60"]
    quiet, hunted = (Lab(tmp_path / name, data, *options, job=job) for name in ("quiet", "hunted"))
    for number in (0, 1):
        container, pids = begun(hunted, "--checkpoint-every", "3steps")
        os.kill(pids[number], signal.SIGTERM)
        assert container.wait() == 75, container.text
    for lab in (quiet, hunted):
        container = lab.start("--nproc", "2", **ONE_THREAD)
        assert container.wait(300) == 0, container.text
    first, second = (json.loads((lab.store / job / "result.json").read_bytes()) for lab in (quiet, hunted))
    for name in ("weights_sha256", "state_sha256", "order_sha256", "metrics"):
        assert first[name] == second[name]


@soak
def test_a_newcomers_job_of_60_lines_is_shared_unasked(tmp_path: Path, small_cifar: Path) -> None:
    newcomers(tmp_path)
    place = ["--store", f"file://{tmp_path}/store", "--halt", str(tmp_path), "--data", str(small_cifar)]
    program = [sys.executable, "entrypoint.py", "linear", *place]
    for run, options in (("one", HALVES_OF_50), ("two", ("--nproc", "2"))):
        done = subprocess.run(
            [*program, "--run", run, *options],
            cwd=tmp_path,
            env=environment(**ONE_THREAD),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / "store" / run / "result.json").read_bytes()) for run in ("one", "two"))
    assert first["state_sha256"] == second["state_sha256"]
