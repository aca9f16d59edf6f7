"""torchvision's networks by name: their published file taken, one step, saved, restored, the next step the same.

The files have the layout of torchvision's and 1,000 classes, and hold chance.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import models

from tests.checkpoints import committed, history
from tests.jobs import photos
from trainer import job as jobs
from trainer import machine, weights
from trainer.checkpoint import Position, restore, take
from trainer.commit import Commit
from trainer.data.pack import pack
from trainer.data.packed import Packed, open_packed
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.job import Task
from trainer.jobs import imagenet
from trainer.loop import Loop, Plan
from trainer.scores import Metric
from trainer.settings import Settings
from watchers import Mailbox

soak = pytest.mark.skipif("BATON_SOAK" not in os.environ, reason="240 and 550 MB; in `make soak`")
NETWORKS = [
    *("resnet18", "resnet50", "convnext_tiny", "mobilenet_v3_small"),
    *(pytest.param(name, marks=soak) for name in ("alexnet", "vgg16")),
]
STEPS = 2
BEFORE_0_4_1 = ("resnet18",)  # published by a torch that did not count BatchNorm's batches


def nothing() -> None:
    pass


@pytest.fixture(autouse=True)
def _computes_as_a_run_does() -> Iterator[None]:
    machine.compute_exactly(torch.get_num_threads())
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("photos")
    pack("imagenet", photos(folder, 8, 4), folder / "packed", options={"size": 64}, say=lambda line: None)
    return open_packed(folder / "packed")


def made(network: str) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = models.get_model(network, num_classes=1000).state_dict()
    if network in BEFORE_0_4_1:
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return dict(state)


def published(network: str, state: Mapping[str, Tensor], folder: Path) -> Path:
    """A file of these weights under torchvision's name for it, but with its own hash."""
    name = imagenet.published_url(network).rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), folder / "raw")
    sha256 = hashlib.sha256((folder / "raw").read_bytes()).hexdigest()
    stem, count = re.subn(r"-[0-9a-f]{8}\.pth$", f"-{sha256[:8]}.pth", name)
    assert count == 1, f"torchvision's own {name} would not be found"
    return (folder / "raw").rename(folder / stem)


def built(network: str, packed: Packed, **settings: object) -> Task:
    chosen = {"model": network, "size": 64, "train_size": 64, "batch_size": 4, **settings}
    job = jobs.load("imagenet")
    return job.build(Settings.of(chosen, job.PRESETS["finetune"]), packed, torch.device("cpu"))


class Saving:
    """Commits at the boundaries after these steps, as one attempt does."""

    def __init__(self, run: History, task: Task, position: Position, at: tuple[int, ...]) -> None:
        self.run, self.task, self.position, self.at = run, task, position, at
        self.saves: list[Commit] = []

    def boundary(self, *, evaluating: bool, evaluated: float = 0.0) -> None:
        if self.position.step in self.at and not evaluating:
            fresh = frozenset(ref.sha256 for save in self.saves for ref in save.manifest.parts)
            state = take(self.task, self.position)
            self.saves.append(committed(self.run, 1, self.position.step, None, state, fresh))

    def evaluated(self, metrics: dict[str, Metric]) -> None:
        pass


def train(task: Task, position: Position, run: History, *at: int) -> list[Commit]:
    plan = Plan(seed=1, batch_size=4, micro_batch_size=4, steps=STEPS, steps_per_epoch=2, bf16=False,
                device=torch.device("cpu"))  # fmt: skip
    saving = Saving(run, task, position, at)
    Loop(task, plan, position, Mailbox(), saving).run(evaluated_at=None)
    return saving.saves


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    """Names of tensors with the same bits."""
    assert one.keys() == other.keys()
    return {name for name in one if one[name].equal(other[name])}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_begins_with_its_published_file_and_goes_on_alike_whole_or_its_last_layer_alone(
    network: str, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = made(network)
    theirs = models.get_model_weights(network).DEFAULT.meta["num_params"]
    assert sum(t.numel() for n, t in state.items() if "running_" not in n and "num_batches" not in n) == theirs
    file = published(network, state, tmp_path / "hub" / "checkpoints")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "BAKED", tmp_path)
    monkeypatch.setattr(imagenet, "published_url", lambda model: f"https://example.invalid/{file.name}")

    whole = built(network, packed)
    whole.begin("imagenet", nothing)
    head = {name for name in state if name.startswith(f"{whole.head}.")}
    begun = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    assert all(begun[name].equal(tensor) for name, tensor in state.items() if name not in head)
    place = Position()
    (save,) = train(whole, place, history(tmp_path, "whole"), 1)
    assert same(begun, whole.model.state_dict()) <= {name for name in begun if "num_batches" in name}
    again = built(network, packed)
    restored = restore(again, history(tmp_path, "whole").load(save.manifest))
    train(again, restored, history(tmp_path, "whole"))
    one, other = take(whole, place), take(again, restored)
    assert same(one.model, other.model) == one.model.keys()
    assert same(one.optimizer, other.optimizer) == one.optimizer.keys()
    assert one.order_sha256 == other.order_sha256

    frozen = built(network, packed, freeze=True)
    frozen.begin("imagenet", nothing)
    begun = {name: tensor.clone() for name, tensor in frozen.model.state_dict().items()}
    first, second = train(frozen, Position(), history(tmp_path, "frozen"), 1, 2)
    assert f"{whole.head}.weight" in begun.keys() - same(begun, frozen.model.state_dict()) <= head
    trained = sum(begun[name].nbytes for name in head)
    moments = sum(tensor.nbytes for tensor in take(frozen, Position()).optimizer.values())
    assert first.sent > sum(tensor.nbytes for tensor in begun.values())
    assert second.sent < trained + moments + 4096


@pytest.mark.parametrize("network", ["resnet18", "convnext_tiny"])
def test_weights_of_another_network_are_refused_in_a_line(network: str, packed: Packed, tmp_path: Path) -> None:
    other = published("mobilenet_v3_small", made("mobilenet_v3_small"), tmp_path)
    with pytest.raises(UserError, match=f"those of another network than {network} at this size") as caught:
        built(network, packed).begin(str(other), nothing)
    assert caught.value.code == ExitCode.SETUP == 78
    assert str(caught.value).isprintable()
