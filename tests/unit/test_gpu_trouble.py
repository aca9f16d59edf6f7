"""GPUs that are hidden, unfit, lost or full. No GPU was at hand: what torch would say of one is faked here, and so is
the machine's /sys, /proc and /dev."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from storage import open_store
from tests.unit.test_loop import Small
from trainer import ending, gpu, run
from trainer.attempt import Attempt
from trainer.cadence import Cadence
from trainer.checkpoint import Position, take
from trainer.commit import RunFacts
from trainer.exits import UserError
from trainer.history import History
from trainer.jobs.cifar10 import Net
from trainer.loop import Plan
from trainer.machine import compute_exactly, compute_quickly, pick_device
from trainer.saver import Saver
from trainer.settings import Settings
from watchers import Mailbox, Notice, Stopped

PCI = "sys/bus/pci/devices/0000:00:1e.0"
HIDDEN = {f"{PCI}/vendor": "0x10de\n", f"{PCI}/class": "0x030200\n"}
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n"
OLD = {**HIDDEN, "dev/nvidiactl": "", "proc/driver/nvidia/version": DRIVER}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "variables", "words"),
    [
        (HIDDEN, {}, ("can't see", "--gpus all")),
        (OLD, {}, ("can't use", "470.57.02", "update the driver")),
        (OLD, {"CUDA_VISIBLE_DEVICES": ""}, ("CUDA_VISIBLE_DEVICES", "unset")),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_with_what_mends_it(
    files: dict[str, str],
    variables: dict[str, str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    root = machine(tmp_path, files)
    with pytest.raises(UserError) as refused:
        pick_device("cuda", root=root)
    assert refused.value.code == 78
    assert pick_device("cpu", root=root).type == "cpu"
    assert not caplog.records
    assert pick_device("auto", root=root).type == "cpu"
    (warned,) = caplog.records
    assert warned.levelno == logging.WARNING
    for word in words:
        assert word in str(refused.value)
        assert word in warned.getMessage()
    assert ("--gpus all" in str(refused.value)) is ("--gpus all" in words)


def test_where_there_is_no_gpu_nothing_is_said_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    other = {f"{PCI}/vendor": "0x1234\n", f"{PCI}/class": "0x030000\n"}
    assert pick_device("auto", root=machine(tmp_path, other)).type == "cpu"
    assert not caplog.records
    with pytest.raises(UserError, match="none in this machine"):
        pick_device("cuda", root=tmp_path)


def failure(code: int | None, text: str = "CUDA error: of some kind\nCompile with TORCH_USE_CUDA_DSA") -> RuntimeError:
    error = torch.AcceleratorError(text)
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "micro_batch", "code", "word"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 25, 78, "--micro-batch-size 13 --allow-change"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, 78, "a single sample"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), None, 78, "this network and its data"),
        (failure(2), 25, 78, "--micro-batch-size 13"),  # of pinned memory
        (failure(209), 25, 78, "take another image or another GPU"),
        (failure(719), 25, 74, "the GPU is lost (CUDA error: of some kind): start again"),
        (failure(999), 25, 74, "the GPU is lost"),
        (failure(None), 25, 74, "the GPU is lost"),
    ],
)
def test_a_gpus_error_is_one_line_and_says_what_to_do(
    error: RuntimeError, micro_batch: int | None, code: int, word: str
) -> None:
    told = gpu.fault(error, micro_batch)
    assert told is not None
    assert (told.code, "\n" in str(told)) == (code, False)
    assert word in str(told)


@pytest.mark.parametrize("error", [failure(710), failure(700), RuntimeError("mat1 and mat2 shapes")])
def test_a_mistake_of_the_jobs_stays_a_defect(error: RuntimeError) -> None:
    assert gpu.fault(error, 25) is None


def test_fp32_is_fp32_on_a_gpu_and_nothing_is_tuned_by_timing_unless_that_is_given_up() -> None:
    def modes() -> tuple[int, bool, bool, bool]:
        cudnn = torch.backends.cudnn
        tf32 = cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        return torch.get_deterministic_debug_mode(), cudnn.benchmark, *tf32

    threads, before = torch.get_num_threads(), modes()
    try:
        compute_exactly(threads)
        assert modes() == (2, False, False, False)
        compute_quickly()
        assert modes() == (0, True, False, False)
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[1:3]


class Sum:
    """What a GPU has yet to compute: `reads` counts how often it had to stand still for it. A fake."""

    is_cuda, reads = True, 0

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        Sum.reads += 1
        return self.value


def attempt(folder: Path, device: str, mailbox: Mailbox, lines: list[Any], every: str = "1000steps") -> Attempt:
    history = History(open_store(f"file://{folder}"), "run")
    number = history.claim({})
    facts = RunFacts(
        run="run", job="job", attempt=number, steps=12, steps_per_epoch=6, settings={}, machine={}, synthetic=False
    )
    plan = Plan(
        seed=1, batch_size=5, micro_batch_size=5, steps=12, steps_per_epoch=6, bf16=False, device=torch.device(device)
    )
    return Attempt(
        history, facts, plan, Small(), Position(), mailbox, cadence=Cadence.parse(every), keep=3, resumed_from=None,
        ledger=(), stop_grace_s=10.0, show=lambda progress: None, show_every_s=math.inf, tell_line=lines.append,
    )  # fmt: skip


def test_what_a_gpu_has_yet_to_train_is_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def settle(_device: torch.device) -> None:
        nonlocal now
        now += 5.0  # of steps that were told to it

    monkeypatch.setattr("trainer.attempt.settle", settle)
    for module in ("attempt", "tally"):
        monkeypatch.setattr(f"trainer.{module}.CLOCK", lambda: now)
    mine = attempt(tmp_path, "cpu", Mailbox(), [])
    try:
        mine.boundary(evaluating=False)
        mine.position.step, mine.position.sums = 6, {"loss": torch.tensor(30.0)}
        for _ in range(2):
            mine.boundary(evaluating=True)
            now += 1.0
        mine.evaluated({"accuracy": 0.5})
        entry: Any = mine._ledger_entry()
        assert entry["evaluation_s"] == entry["tally"]["evaluation_s"] == 2.0
        assert entry["tally"]["training_s"] == 5.0
    finally:
        mine.end(0, "finished")


def test_the_curve_never_makes_a_gpu_wait_for_each_of_its_points(tmp_path: Path) -> None:
    lines: list[Any] = []
    mine = attempt(tmp_path, "cpu", Mailbox(), lines)
    try:
        for step in range(1, 7):
            mine.position.step, mine.position.sums = step, {"loss": Sum(step * 5.0)}  # type: ignore[dict-item]
            mine.boundary(evaluating=False)
            assert Sum.reads == 0
        mine.evaluated({"accuracy": 0.5})
    finally:
        mine.end(0, "finished")
    points = [(line["step"], line["loss_sum"], line["seen"]) for line in lines[:-1]]
    assert points == [(step, step * 5.0, step * 5) for step in range(1, 7)]
    assert list(lines[0]) == ["step", "loss_sum", "epoch", "seen", "attempt", "seconds"]
    assert (lines[-1]["step"], lines[-1]["train_loss"]) == (6, 1.0)


def test_a_gpus_last_save_goes_into_the_memory_that_is_pinned_already_unless_a_save_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into: list[Any] = []
    monkeypatch.setattr("trainer.attempt.take", lambda *given: into.append(given[2]) or take(*given))
    for device, busy in (("cuda", False), ("cuda", True), ("cpu", False)):
        mine = attempt(tmp_path / f"{device}{busy}", device, Mailbox(), [])
        mine.position.step = 1
        monkeypatch.setattr(Saver, "busy", busy)
        mine._take(copy=False)
        assert into.pop() is (mine._buffers if (device, busy) == ("cuda", False) else None)
        mine.end(0, "finished")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_once_another_process_is_gone_the_state_of_a_gpu_is_never_saved(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    monkeypatch.setattr("trainer.attempt.take", lambda *given: read.append(given) or take(*given))
    mailbox = Mailbox()
    mine = attempt(tmp_path, device, mailbox, [])
    mine.position.step = 3
    notice = Notice("process", "stop", "another process of this run is gone", "process", 0.0)
    mailbox.post(notice)

    def lose(*, evaluated_at: int | None) -> None:
        raise Stopped(notice)

    request: Any = SimpleNamespace(mailbox=mailbox, halt=SimpleNamespace(check=lambda: None))
    ready: Any = SimpleNamespace(plan=mine.plan, settings=Settings(), data=None)
    loop, together = SimpleNamespace(run=lose), SimpleNamespace(has_lost=True)
    code = run._to_its_end(request, ready, mine, loop, together)  # type: ignore[arg-type]
    assert (code, len(read)) == ((74, 0) if device == "cuda" else (75, 1))


def test_a_copy_that_fails_once_it_is_superseded_says_nothing_over_its_successors_sign(tmp_path: Path) -> None:
    mine = attempt(tmp_path, "cpu", Mailbox(), [])
    successor = History(open_store(f"file://{tmp_path}"), "run")
    while successor.read_record("status.json") is None:
        time.sleep(0.01)  # until its own sign of the start is there
    assert successor.claim({}) == 2
    successor.write_record({"attempt": 2, "state": "running"}, "status.json")
    mine.position.step = 1
    assert ending.fail(Settings(), mine, ZeroDivisionError("of the job's"), at_boundary=True)
    assert mine.superseded is not None
    assert (successor.read_record("status.json") or {})["attempt"] == 2
    assert (successor.read_record("attempts", "000001.end.json") or {})["outcome"] == "defect"


def test_evaluation_reads_the_last_steps_side_once_and_again_when_it_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = nn.Module()
    net.register_buffer("side", torch.tensor(16))
    net.register_buffer("last", torch.tensor(False))
    net._known = None  # type: ignore[assignment]
    reads: list[int] = []
    real = torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: reads.append(1) or real(self))

    def seen() -> tuple[int, bool]:
        return Net.of_last_step(net)  # type: ignore[arg-type]

    with torch.inference_mode():
        assert [seen(), seen(), seen()] == [(16, False)] * 3
    assert len(reads) == 1
    net.side.fill_(24)  # type: ignore[operator, union-attr]
    assert seen() == (24, False)
    net.load_state_dict({"side": torch.tensor(32), "last": torch.tensor(True)})
    assert seen() == (32, True)
