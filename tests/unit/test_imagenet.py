"""What the job `imagenet` shows its network, by how much of the run is done, and how it trains it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from tests.docs.pages import shown_use
from tests.jobs import photos
from trainer import job as jobs
from trainer import weights
from trainer.data.pack import pack
from trainer.data.packed import Packed, open_packed
from trainer.exits import UserError
from trainer.job import Batch, Task
from trainer.jobs.imagenet import published_classes, scale_of
from trainer.prepare import _check_micro_batches
from trainer.settings import Settings

STEPS = 21


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("photos")
    pack("imagenet", photos(folder, 8, 4), folder / "packed", options={"size": 64}, say=lambda line: None)
    return open_packed(folder / "packed")


def built(packed: Packed, **settings: object) -> Task:
    chosen = {"model": "shufflenet_v2_x0_5", "size": 64, "batch_size": 4, "weights": "none", **settings}
    return jobs.load("imagenet").build(Settings.of(chosen), packed, torch.device("cpu"))


def sides(packed: Packed, **settings: object) -> list[int]:
    """Of the pictures that training sees at each step of a run."""
    task = built(packed, **settings)
    batch = Batch(np.arange(4), 0, 0, torch.device("cpu"))
    seen = []
    for step in range(STEPS):
        task.schedule(step, STEPS)
        x = task.seen(batch)  # type: ignore[attr-defined]
        assert x.shape[:2] == (4, 3)
        assert x.shape[2] == x.shape[3]
        assert task.effort(step, STEPS) == x.shape[2] * x.shape[3]
        seen.append(x.shape[2])
    return seen


def test_pictures_grow_from_half_to_three_quarters_and_stay_so_for_the_last_seventh(packed: Packed) -> None:
    seen = sides(packed)
    assert seen == sorted(seen)
    assert (seen[0], set(seen[STEPS * 6 // 7 :])) == (32, {48})


def test_who_gives_a_side_gets_it_throughout(packed: Packed) -> None:
    assert set(sides(packed, train_size=56)) == {56}


@pytest.mark.parametrize("size", [8, 9, 15, 20, 26, 27, 30])
def test_the_smallest_sizes_are_trained_on_what_is_packed_for_them(size: int, tmp_path: Path) -> None:
    small = pack("imagenet", photos(tmp_path, 8, 4), tmp_path / "out", options={"size": size}, say=lambda line: None)
    seen = sides(small, size=size)
    assert max(seen) <= size


@pytest.mark.parametrize("wanted", [{"size": 100}, {"train_size": 100}, {"size": 80, "train_size": 100}])
def test_a_side_that_is_more_than_is_packed_is_told_with_one_that_is_not(
    wanted: dict[str, int], packed: Packed, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="more than the 74 pixels") as told:
        built(packed, **wanted)
    found = re.search(r"^--([a-z-]+) \d+ is .*: give --\1 (\d+), or .* --size (\d+)$", str(told.value))
    assert found
    less = {name: min(side, int(found[2])) for name, side in wanted.items()}
    built(packed, **less)
    anew = pack("imagenet", photos(tmp_path, 4, 2), tmp_path / "out", options={"size": int(found[3])}, say=print)
    built(anew, **wanted)


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


EPOCHS = 40


def views(task: Task, seed: int, epochs: int = EPOCHS) -> torch.Tensor:
    """What a run sees of the first two pictures, as bytes would have it: float32 [2, epochs, 3, side, side]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in task.scale)  # type: ignore[attr-defined]
    batches = (Batch(np.arange(2), seed, epoch, torch.device("cpu")) for epoch in range(epochs))
    return torch.stack([task.seen(batch) for batch in batches], 1) * std + mean  # type: ignore[attr-defined]


def test_each_epoch_sees_another_part_mirrored_half_the_time_in_other_colours(tmp_path: Path) -> None:
    """One picture grows redder to the right and greener to the bottom, one is of a single colour."""
    ramp = np.linspace(0, 255, 74)
    slopes = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], 128.0), axis=-1)
    plain = np.full_like(slopes, (160, 120, 80))
    for split in ("train", "val"):
        for name, pixels in (("a slope", slopes), ("plain", plain)):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "in" / split / name / "1.png")
    task = built(pack("imagenet", str(tmp_path / "in"), tmp_path / "out", options={"size": 64}, say=lambda line: None))
    slope, colour = views(task, 0)

    across, down = slope[:, 0].mean(1), slope[:, 1].mean(2)
    mirrored = across[:, 0] > across[:, -1]
    assert EPOCHS / 4 < mirrored.sum() < EPOCHS * 3 / 4
    assert (down[:, 0] < down[:, -1]).all(), "never upside down"
    for line in (across, down):
        assert line.min(1).values.std() > 10, "parts begin elsewhere"
        assert (line.max(1).values - line.min(1).values).std() > 10, "and are of other sizes"

    assert colour.std((2, 3)).max() < 0.1, "a part of one colour is of one colour"
    red, _, blue = colour.mean((2, 3)).unbind(1)
    assert 6 < colour.mean((1, 2, 3)).std() < 24, "a fifth brighter or darker at most"
    assert (red / blue).std() > 0.1, "more and less vivid"

    assert views(task, 0, 1)[0, 0].equal(slope[0]), "alike after every restart"
    assert not views(task, 1, 1)[0, 0].equal(slope[0])


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("imagenet", 78, r"python entrypoint\.py weights imagenet --model shufflenet_v2_x0_5 .* --weights none"),
        ("/nowhere/model.safetensors", 78, "isn't there"),
        ("file:///nowhere/runs/mine", 78, "no finished run is there"),
        ("imagnet", 64, "give none, imagenet, a file or a finished run's URL"),
        ("", 64, "give none, imagenet, a file or a finished run's URL"),
    ],
)
def test_weights_that_are_not_there_are_told_and_chance_takes_no_place_of_theirs(
    given: str, code: int, said: str, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BAKED", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=said) as told:
        built(packed).begin(given, lambda: None)
    assert told.value.code == code


@pytest.mark.parametrize(("optimizer", "peak"), [("sgd", 0.05 * 4 / 32), ("adamw", 0.001)])
def test_the_rate_goes_up_then_down_along_a_cosine_and_what_has_one_dimension_does_not_decay(
    optimizer: str, peak: float, packed: Packed
) -> None:
    task = built(packed, optimizer=optimizer, weight_decay=0.3)
    (made,) = task.optimizers.values()
    rates = []
    for step in range(10):
        task.schedule(step, 10)
        rates += {group["lr"] for group in made.param_groups}
    falling = [peak * (1 + np.cos(np.pi * i / 8)) / 2 for i in range(8)]
    assert rates == pytest.approx([peak / 2, peak, *falling])
    decay = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert {(p.ndim > 1, decay[id(p)]) for p in task.model.parameters()} == {(True, 0.3), (False, 0.0)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": 32}, "--size 32: alexnet takes no pictures of 32 pixels ("),
        ({"train_size": 32}, "--train-size 32: alexnet takes no pictures of 32 pixels ("),
    ],
)
def test_a_side_that_a_network_does_not_take_is_refused_by_the_name_that_it_was_given(
    given: dict[str, int], said: str, packed: Packed
) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as told:
        built(packed, model="alexnet", **given)
    assert told.value.code == 64


def test_a_network_that_takes_no_smaller_pictures_is_trained_on_large_ones(packed: Packed) -> None:
    assert set(sides(packed, model="alexnet")) == {64}


def test_single_samples_are_refused_but_where_all_norms_are_frozen(packed: Packed) -> None:
    with pytest.raises(UserError, match="leaves a single sample"):
        _check_micro_batches(built(packed).model, 5, 2)
    frozen = built(packed, freeze=True, weights="imagenet")
    _check_micro_batches(frozen.model, 5, 2)
    frozen.model.train()
    before = {name: buffer.clone() for name, buffer in frozen.model.named_buffers()}
    frozen.loss(Batch(np.arange(1), 0, 0))
    assert all(before[name].equal(buffer) for name, buffer in frozen.model.named_buffers())


def test_evaluation_sees_pictures_in_the_scale_that_the_result_tells(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, colour in (("red", (200, 40, 30)), ("plain", (160, 120, 80))):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            Image.new("RGB", (70, 70), colour).save(tmp_path / "in" / split / name / "1.png")
    task = built(pack("imagenet", str(tmp_path / "in"), tmp_path / "out", options={"size": 64}, say=lambda line: None))
    seen: list[torch.Tensor] = []
    task.logits = lambda x: seen.append(x) or torch.zeros(len(x), 2)  # type: ignore[attr-defined, func-returns-value]
    task.evaluate(slice(0, 2))
    told: dict[str, Any] = task.result_config()
    for x, colour in zip(seen[0], ((160, 120, 80), (200, 40, 30)), strict=True):
        wanted = (torch.tensor(colour) / 255 - torch.tensor(told["mean"])) / torch.tensor(told["std"])
        assert x.shape == (3, 64, 64)
        torch.testing.assert_close(x, wanted[:, None, None].expand(3, 64, 64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["mnasnet0_5", "shufflenet_v2_x0_5"])
def test_a_result_is_loaded_as_the_docs_say_and_begins_another_run(
    model: str, packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = built(packed, model=model)
    save_file({n: t.contiguous() for n, t in task.model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(task.result_config()))
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {"json": json, "safetensors": safetensors, "torchvision": torchvision}
    exec(shown_use("imagenet"), made)
    x = torch.rand(2, 3, 64, 64)
    wanted = task.model.eval()(x)
    assert made["model"](x).allclose(wanted, atol=1e-5)
    torch.manual_seed(9)
    other = built(packed, model=model)
    assert not other.model.eval()(x).allclose(wanted)
    other.begin(str(tmp_path), lambda: None)
    assert other.model.eval()(x).equal(wanted)


def test_a_network_whose_weights_want_another_scale_gets_it(packed: Packed) -> None:
    for model, scale in (("efficientnet_v2_l", 127.5), ("shufflenet_v2_x0_5", 123.675)):
        assert scale_of(model)[0][0] == pytest.approx(scale)
    assert built(packed, model="googlenet").model.transform_input is True


def test_a_dropout_that_a_frozen_network_would_not_heed_is_refused(packed: Packed) -> None:
    with pytest.raises(UserError, match=r"--dropout 0\.9: with --freeze .* nothing is dropped; leave one") as told:
        built(packed, model="alexnet", freeze=True, weights="imagenet", dropout=0.9)
    assert told.value.code == 64


def test_a_dropout_that_nothing_would_drop_by_is_refused(packed: Packed) -> None:
    with pytest.raises(UserError, match=r"--dropout 0\.3: shufflenet_v2_x0_5 has no layer that drops"):
        built(packed, dropout=0.3)
    dropped = [m.p for m in built(packed, model="googlenet", dropout=0.3).model.modules() if hasattr(m, "p")]
    assert dropped == [0.3]


@pytest.mark.parametrize(
    ("name", "warned"), [("a thing {}", True), ("n{:08}", False), (None, False)], ids=["others", "WordNet's", "its own"]
)
def test_a_last_layer_of_a_thousand_other_classes_is_taken_with_a_warning(
    name: str | None, warned: bool, packed: Packed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = published_classes("shufflenet_v2_x0_5")
    classes = tuple(own if name is None else (name.format(i) for i in range(1000)))
    task = built(dataclasses.replace(packed, classes=classes))
    monkeypatch.setattr(weights, "find", lambda published, check: dict(task.model.state_dict()))
    task.begin("imagenet", lambda: None)
    assert ("weights: imagenet: tell other classes apart than the data" in caplog.text) == warned


def test_weights_for_pictures_of_another_side_are_told_as_that(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(name: str, weights: None, **given: Any) -> torch.nn.Module:
        shape = {"patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
        return torchvision.models.VisionTransformer(**shape, **given)

    monkeypatch.setattr(torchvision.models, "get_model", small)
    task = built(packed, model="vit_b_16")
    state = {name: tensor.contiguous() for name, tensor in task.model.state_dict().items()}
    file = tmp_path / "model.safetensors"
    save_file({**state, "encoder.pos_embedding": torch.zeros(1, 1 + 14 * 14, 16)}, file)
    with pytest.raises(UserError, match=r"are for pictures of 224 pixels, .*: give --size 224, or --weights none$"):
        task.begin(str(file), lambda: None)
    save_file({**state, "encoder.pos_embedding": torch.zeros(1, 1 + 14 * 14, 8)}, file)
    with pytest.raises(UserError, match="another network"):
        task.begin(str(file), lambda: None)
    other = built(packed, model="vit_b_16")
    other.model = torch.nn.Sequential()  # one that has nothing of the kind
    with pytest.raises(UserError, match="another network"):
        other._adopt({"encoder.pos_embedding": torch.zeros(1, 5, 8)}, "it")  # type: ignore[attr-defined]
