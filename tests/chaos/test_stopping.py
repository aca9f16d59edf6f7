"""However a container is told to go, it goes in time, with the right exit code and its last state durable."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.runs import REPOSITORY, CompressedLab, Container, Lab, command, light_command

OPTIONS = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "500"]


def stop(lab: Lab, how: str) -> tuple[int, float, str]:
    """Train a little, stop it so; exit code, seconds that it took, text."""
    container = lab.start()
    container.wait_for("to stop:")
    time.sleep(1)
    begun = time.monotonic()
    if how.startswith("SIG"):
        container.signal(getattr(signal, how))
    else:
        (lab.halt / how).touch()
    code = container.wait()
    return code, time.monotonic() - begun, container.text


@pytest.mark.parametrize(
    ("how", "code"), [("halt", 0), ("preempt.txt", 75), ("SIGTERM", 75), ("SIGHUP", 75), ("SIGINT", 130)]
)
def test_stops_with_its_exit_code_and_a_durable_checkpoint(
    how: str, code: int, tmp_path: Path, small_cifar: Path
) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    got, seconds, text = stop(lab, how)
    assert got == code, text
    assert seconds < 5, "a generous bound: half a second to see it, the rest for a loaded machine"
    status = lab.status()
    assert f"last checkpoint durable at step {status['step']}, 0 steps lost" in text
    assert (status["state"], status["exit"], status["checkpoint_health"]) == ("stopped", code, "ok")
    assert status["checkpoint_step"] == status["step"]


def test_a_halt_file_beats_the_sigterm_that_comes_with_it(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    container = lab.start()
    container.wait_for("to stop:")
    time.sleep(0.5)
    container.signal(signal.SIGTERM)
    (lab.halt / "halt").touch()
    assert container.wait() == 0, container.text


@pytest.mark.parametrize(("file", "code"), [("halt", 0), ("preempt.txt", 75)])
def test_a_halt_file_at_the_start_ends_it_before_torch_is_imported(
    file: str, code: int, tmp_path: Path, small_cifar: Path
) -> None:
    lab = Lab(tmp_path, small_cifar)
    (lab.halt / file).touch()
    ended, said = light_command("cifar10", "--halt", str(lab.halt), "--store", lab.url)
    assert ended == code, said
    assert f"not started: halt file {lab.halt / file} is there; remove it to start" in said
    assert not lab.store.exists()


def test_packing_stops_too_and_leaves_what_was_there(tmp_path: Path, small_cifar: Path) -> None:
    before = (small_cifar / "packed.safetensors").read_bytes()
    for how, code in {"halt": 0, "preempt.txt": 75, "SIGTERM": 75, "SIGINT": 130}.items():
        out, halt = tmp_path / how / "out", tmp_path / how / "halt"
        out.mkdir(parents=True)
        halt.mkdir()
        (out / "packed.safetensors").write_bytes(before)
        words = ["data", "cifar10", "--source", "synthetic", "--out", str(out), "--halt", str(halt)]
        packing = Container.of([sys.executable, str(REPOSITORY / "entrypoint.py"), *words])
        packing.wait_for("packing cifar10 from")
        with packing.standing_still():
            if how.startswith("SIG"):
                packing.signal(getattr(signal, how))
            else:
                (halt / how).touch()
                time.sleep(0.6)  # so that it looks as soon as it goes on
        assert packing.wait() == code, packing.text
        assert "packing stopped, nothing was changed" in packing.lines[-1]
        assert [file.name for file in out.iterdir()] == ["packed.safetensors"]
        assert (out / "packed.safetensors").read_bytes() == before
    ended, said = command(*words[:-2], BATON_HALT=str(tmp_path / "preempt.txt" / "halt"))
    assert ended == 75, said
    assert "not started: halt file" in said


@pytest.mark.parametrize("delay", [0.4, 0.8, 1.2, 1.6, 2.0])
def test_a_sigterm_during_start_up_is_obeyed(delay: float, tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    container = lab.start()
    time.sleep(delay)
    container.signal(signal.SIGTERM)
    assert container.wait(15) in (75, -signal.SIGTERM), container.text
    assert "Traceback" not in container.text


SILENT = """
import sys, time
import console.train, entrypoint
call, folder, when, claimed, opened = *sys.argv[1:4], [], console.train.open_store

class Silent:
    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        found = getattr(self._store, name)
        if name not in ("put", "get", "free_bytes"):
            return found

        def asked(key="", *arguments, **named):
            if call in (name, "all") and folder in key and (len(claimed) > 1 or when == "before the claim"):
                print("nothing comes of", name, key, flush=True)
                time.sleep(60)
            claimed.extend([key] if name == "put" and "/attempts/" in key else [])  # twice: History._try_twice
            return found(key, *arguments, **named) if key else found()

        return asked

console.train.open_store = lambda url, **named: Silent(opened(url, **named))
sys.exit(entrypoint.main(sys.argv[4:]))
"""


class LabOfSilence(Lab):
    silent: tuple[str, str, str]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", SILENT, *self.silent, *arguments]


NO_MEMORY = """
import os, signal, sys
import entrypoint, trainer.commit

def encode(tensors):
    os.kill(os.getpid(), signal.SIGTERM)
    raise MemoryError("none left for a part")

trainer.commit.encode = encode
sys.exit(entrypoint.main(sys.argv[1:]))
"""


def test_a_defect_in_the_last_save_is_an_end_on_record(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, *OPTIONS, "--checkpoint-every", "50steps")
    place = ["--store", lab.url, "--halt", str(lab.halt), "--data", str(small_cifar)]
    container = Container.of([sys.executable, "-c", NO_MEMORY, "cifar10", *place, *lab.options])
    assert container.wait() == 1, container.text
    assert "stopping at step" in container.text
    assert "MemoryError: none left for a part" in container.text
    record = json.loads((lab.store / "cifar10" / "attempts" / "000001.end.json").read_text())
    sign = json.loads((lab.store / "cifar10" / "status.json").read_text())
    assert (record["exit"], record["outcome"]) == (1, "defect")
    assert (sign["state"], sign["exit"], sign["outcome"]) == ("stopped", 1, "defect")


@pytest.mark.parametrize(
    ("call", "key", "when", "after"),
    [
        ("get", "/result.json", "before the claim", "finished:"),
        ("free_bytes", "", "before the claim", "durable after"),
        ("get", "/status.json", "before the claim", "durable after"),
        ("put", "/attempts/", "before the claim", "durable after"),
        ("get", "/checkpoints/", "after it", "durable after"),
        ("get", ".end.json", "after it", "durable after"),
        ("get", "/attempts/000001.json", "after it", "to stop:"),
        ("all", "", "after it", "durable after"),
    ],
)
def test_a_store_that_is_silent_at_the_start_holds_no_notice_up(
    call: str, key: str, when: str, after: str, tmp_path: Path, small_cifar: Path
) -> None:
    options = [*OPTIONS, "--steps", "30"] if after == "finished:" else OPTIONS
    first = Lab(tmp_path, small_cifar, *options).start("--checkpoint-every", "1h" if after == "to stop:" else "0.5s")
    assert first.wait_for(after), first.text
    first.process.kill()
    first.wait()
    lab = LabOfSilence(tmp_path, small_cifar, *options)
    lab.silent = call, key, when
    container = lab.start()
    assert container.wait_for("nothing comes of"), container.text
    told = time.monotonic()
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert time.monotonic() - told < 9, "docker kills after 10"


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, small_cifar: Path) -> None:
    """Shown on a save that can't end: the store's folder is on a stopped FUSE-like place, here a full pipe."""
    lab = Lab(tmp_path, small_cifar, *OPTIONS)
    container = lab.start()
    container.wait_for("to stop:")
    os.kill(container.process.pid, signal.SIGINT)
    os.kill(container.process.pid, signal.SIGINT)
    assert container.wait(10) == 130


def test_between_micro_batches_the_step_is_given_up_and_leaves_no_trace(tmp_path: Path, small_cifar: Path) -> None:
    """One step of 1,000 micro-batches lasts long; a stop in it may not wait for its end, nor change a bit."""
    options = ["--preset", "tutorial", "--batch-size", "2000", "--micro-batch-size", "2", "--epochs", "2"]
    lab = Lab(tmp_path / "hunted", small_cifar, *options)
    container = lab.start("--checkpoint-every", "1steps")
    container.wait_for("durable after")
    time.sleep(0.3)
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert "durable at step 1, 0 steps lost" in container.text, container.text
    lab.finish()
    quiet = Lab(tmp_path / "quiet", small_cifar, *options)
    quiet.finish()
    assert lab.hashes() == quiet.hashes()


def test_a_finished_run_started_again_says_so_and_trains_nothing(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "100", "--epochs", "1")
    lab.finish()
    before = sorted(p.name for p in lab.store.rglob("*"))
    again = lab.finish()
    assert "is finished: 20 steps" in again.text
    ended, said = light_command("status", "--store", lab.url)
    assert ended == 0, said
    assert "finished" in said
    assert sorted(p.name for p in lab.store.rglob("*")) == before


def test_a_run_killed_before_its_result_was_written_still_gets_it(tmp_path: Path, small_cifar: Path) -> None:
    lab = Lab(tmp_path, small_cifar, "--preset", "tutorial", "--batch-size", "100", "--epochs", "1")
    lab.finish()
    result = lab.store / "cifar10" / "result.json"
    before = result.read_text()
    result.unlink()
    result.mkdir()  # whatever starts it again can't mend this: it must not try for ever
    refused = lab.start()
    assert refused.wait() == 78, refused.text
    assert "result.json: is a folder" in refused.lines[-1]
    result.rmdir()
    lab.finish()
    assert '"accuracy"' in before
    # of a run of this name that was deleted: its last checkpoint had the name of this one's
    result.write_text(json.dumps({**json.loads(before), "state_sha256": "0" * 64}))
    assert lab.status()["state"] == "stopped"
    lab.finish()
    assert lab.status()["state"] == "finished"
    keys = ("metrics", "weights_sha256", "checkpoint", "state_sha256")
    first, second = json.loads(before), json.loads(result.read_text())
    assert [first[k] for k in keys] == [second[k] for k in keys]


def test_deaths_before_the_first_save_count_for_how_often_it_pays_to_save(tmp_path: Path, small_cifar: Path) -> None:
    """A machine is expected to last two hours before anything is known, and half of that after a death."""
    options = ["--preset", "tutorial", "--batch-size", "10", "--epochs", "500"]
    lab = CompressedLab(tmp_path, small_cifar, *options, constants={"trainer.cadence.SHORTEST_S": 0.5})
    first = Lab(tmp_path, small_cifar, *options).start()  # its first save would come after 15 s
    assert first.wait_for("to stop:"), first.text
    first.signal(signal.SIGKILL)
    first.wait()
    assert "durable" not in first.text
    for attempt in (2, 3):  # the first of them sees no checkpoint, the second one whose ledger begins with the first
        container = lab.start()
        assert container.wait_for(f"attempt {attempt} (starts|goes on) at step"), container.text
        told = container.wait_for("saving every .*, a machine is expected to last")
        assert told, container.text
        container.signal(signal.SIGKILL)
        container.wait()
        assert f"expected to last {2 / attempt:.1f} h" in told
