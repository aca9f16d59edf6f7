"""Images per second of the `imagenet` job beside torchvision's reference way, in turn, epoch by epoch, on real files.

The reference: ImageFolder, DataLoader with 2 workers, RandomResizedCrop and mirror images, the same network in torch's
usual memory order, SGD. Baton's epochs are of its own loop, without evaluations; its first one has the packing in it.
Once as the job trains by itself (a side of 1/2 to 3/4) and once with pictures of the reference's side.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import time
from itertools import islice
from pathlib import Path
from statistics import harmonic_mean

from measure import REPOSITORY, add_device, chosen, machine, peak_memory, ratio, scratch, spread

import torch  # isort: skip
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

from trainer import job as jobs
from trainer.checkpoint import Position, settle
from trainer.data.pack import pack
from trainer.loop import Loop, Plan
from trainer.machine import compute_exactly, computes_in_bf16, keep_memory, thread_count
from trainer.settings import Settings
from trainer.startup import put_off_compiler
from watchers import Mailbox


class Silent:
    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None: ...

    def evaluated(self, metrics: object) -> None: ...


class Baton:
    def __init__(self, packed: Path, settings: Settings, steps: int, epochs: int, device: torch.device) -> None:
        from trainer.data.packed import open_packed

        torch.manual_seed(0)
        self.task = jobs.load("imagenet").build(settings, open_packed(packed), device)
        per_epoch = min(steps, self.task.train_size // settings.batch_size)
        self.plan = Plan(
            seed=0, batch_size=settings.batch_size, micro_batch_size=settings.batch_size, steps=per_epoch * epochs,
            steps_per_epoch=per_epoch, bf16=computes_in_bf16(device), device=device,
        )  # fmt: skip
        self.task.model.train()
        self.loop = Loop(self.task, self.plan, Position(), Mailbox(), Silent())

    def epoch(self) -> float:
        begun = time.perf_counter()
        for _ in range(self.plan.steps_per_epoch):
            self.loop._step()
        settle(self.plan.device)
        return time.perf_counter() - begun


class Reference:
    def __init__(self, folder: Path, settings: Settings, steps: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        way = [transforms.RandomResizedCrop(settings.size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        way.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        images = datasets.ImageFolder(str(folder / "train"), transforms.Compose(way))
        on_gpu = device.type == "cuda"
        self.loader = DataLoader(
            images, settings.batch_size, shuffle=True, num_workers=2, drop_last=True, pin_memory=on_gpu
        )
        self.model = models.get_model(settings.model, num_classes=len(images.classes)).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def epoch(self) -> float:
        begun = time.perf_counter()
        for images, labels in islice(self.loader, self.steps):
            self.optimizer.zero_grad()
            images, labels = (batch.to(self.device, non_blocking=True) for batch in (images, labels))
            F.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
        settle(self.device)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data = Path(os.environ.get("BATON_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    parser.add_argument("--source", type=Path, default=data / "imagenet-sample.tar", help="a tar of photographs")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1 << 30, help="of an epoch, to end it early; then no first epoch")
    add_device(parser)
    options = parser.parse_args()
    device = torch.device(chosen(options.device))
    if not options.source.exists():
        print(f"skipped: no photographs, {options.source} isn't there")
        return
    put_off_compiler()
    keep_memory()
    compute_exactly(thread_count())
    preset = {**jobs.load("imagenet").PRESETS["scratch"], "model": options.model, "size": options.size}
    with scratch() as folder:
        with tarfile.open(options.source) as tar:
            tar.extractall(folder, filter="data")
        (tree,) = (path for path in folder.iterdir() if path.is_dir())
        begun = time.perf_counter()
        pack("imagenet", str(tree), folder / "packed", options={"size": options.size}, say=lambda line: None)
        packing = time.perf_counter() - begun
        rates: dict[str, list[list[float]]] = {}  # of each way and run, by epoch
        for _ in range(options.runs):
            packed, length = folder / "packed", (options.steps, options.epochs, device)
            ways = {
                "Baton": Baton(packed, Settings(**preset), *length),
                "Baton, same side": Baton(packed, Settings(**preset, train_size=options.size), *length),
                "reference": Reference(tree, Settings(**preset), options.steps, device),
            }
            images = ways["Baton"].plan.steps_per_epoch * Settings(**preset).batch_size  # type: ignore[union-attr]
            for name in ways:
                rates.setdefault(name, []).append([])
            for epoch in range(options.epochs):
                for name in list(ways)[:: 1 if epoch % 2 else -1]:
                    seconds = ways[name].epoch() + (packing if not epoch and name != "reference" else 0.0)
                    rates[name][-1].append(images / seconds)
    print(f"imagenet {options.model} at {options.size} pixels, {machine(device.type)}; packing {packing:.1f} s")
    first = {name: [run[0] for run in runs] for name, runs in rates.items()}
    # an epoch's images take as long as their number over the rate: the mean of the later epochs' is the harmonic one
    later = {name: [harmonic_mean(run[1:]) for run in runs] for name, runs in rates.items()}
    for name in rates:
        print(f"{name + ':':<18}first epoch {spread(first[name], '.1f')} images/s, later {spread(later[name], '.1f')}")
    for name in ("Baton", "Baton, same side"):
        print(f"{name}/reference, first epoch: {ratio(first[name], first['reference'])}")
        print(f"{name}/reference, later:       {ratio(later[name], later['reference'])}")
    print(f"peak memory: {peak_memory()}, all three in one process")


if __name__ == "__main__":
    main()
