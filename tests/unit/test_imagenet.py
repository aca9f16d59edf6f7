"""What the job `imagenet` shows its network, by how much of the run is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.jobs import photos
from trainer import job as jobs
from trainer.data.pack import pack
from trainer.data.packed import Packed, open_packed
from trainer.job import Batch
from trainer.settings import Settings

STEPS = 21


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("photos")
    pack("imagenet", photos(folder, 8, 4), folder / "packed", options={"size": 64}, say=lambda line: None)
    return open_packed(folder / "packed")


def sides(packed: Packed, **settings: object) -> list[int]:
    """Of the pictures that training sees at each step of a run."""
    chosen = {"model": "shufflenet_v2_x0_5", "size": 64, "batch_size": 4, "weights": "none", **settings}
    task = jobs.load("imagenet").build(Settings.of(chosen), packed, torch.device("cpu"))
    batch = Batch(np.arange(4), 0, 0, torch.device("cpu"))
    seen = []
    for step in range(STEPS):
        task.schedule(step, STEPS)
        x = task.seen(batch)  # type: ignore[attr-defined]
        assert x.shape[:2] == (4, 3)
        assert x.shape[2] == x.shape[3]
        seen.append(x.shape[2])
    return seen


def test_pictures_grow_from_half_to_three_quarters_and_stay_so_for_the_last_seventh(packed: Packed) -> None:
    seen = sides(packed)
    assert seen == sorted(seen)
    assert (seen[0], set(seen[STEPS * 6 // 7 :])) == (32, {48})


def test_who_gives_a_side_gets_it_throughout(packed: Packed) -> None:
    assert set(sides(packed, train_size=56)) == {56}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error")])
def test_a_gpu_that_fails_at_the_first_look_is_no_wrong_size(
    error: RuntimeError, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake failure: no GPU was at hand."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models.ShuffleNetV2.forward", fail)
    with pytest.raises(type(error)):
        sides(packed)
