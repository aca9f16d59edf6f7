"""Every job, in fp32 and bf16: ended at random moments, and its result used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.deaths import MOMENTS, die, random_deaths
from tests.docs.pages import shown_use
from tests.jobs import JOBS, SHORT, options_for, packed
from tests.runs import REPOSITORY, CompressedLab, Lab, environment
from trainer.data.packed import FILE_NAME, open_packed
from trainer.jobs import cifar10


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(request.param, tmp_path_factory.mktemp(request.param))


def finish(lab: Lab) -> dict[str, Any]:
    lab.finish()
    result: dict[str, Any] = json.loads((lab.store / lab.job / "result.json").read_bytes())
    return result


SEED, DEATHS = int(os.environ.get("BATON_SOAK_SEED", "1")), 20 if "BATON_SOAK_SEED" in os.environ else 4
EPOCHS = str(5 * DEATHS)
# the networks that a CPU computes in bf16 within seconds, where the job's own is none of them
IN_BF16 = {"cifar10": ("--preset", "quick")}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("job", "data"), [(job, job) for job in JOBS], ids=JOBS, indirect=["data"])
def test_deaths_at_random_moments_change_no_bit_and_leave_a_result_as_good_as_told(
    job: str, data: Path, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*options_for(job, data), "--epochs", EPOCHS, "--precision", precision]
    options += IN_BF16.get(job, ()) if precision == "bf16" else ()
    quiet = Lab(tmp_path / "quiet", data, *options, *SHORT, job=job)
    hunted = CompressedLab(tmp_path / "hunted", data, *options, job=job, constants={})
    hunted.pace.touch()
    happened, moments = Counter[str](), set[str]()
    for death in random_deaths(zlib.crc32(f"{SEED} {job} {precision}".encode()), DEATHS):
        # counted in steps there is no save within an evaluation, by the clock there is
        every = ("--checkpoint-every", "0.1s") if death.moment == "evaluation" else SHORT
        for container, place in die(hunted, death, *every):
            assert "finished:" not in container.text, "too short a run: its end came first"
            happened[f"{death.end} in {' and '.join(sorted(place.moments))}"] += 1
            moments |= place.moments
    hunted.pace.unlink()
    first, second = finish(quiet), finish(hunted)
    print(f"seed {SEED}: {dict(happened)}")
    assert moments == MOMENTS.keys()
    for name in ("weights_sha256", "state_sha256", "order_sha256", "metrics"):
        assert first[name] == second[name]
    if job in cifar10.KINDS and precision == "fp32":  # others: below, and test_bert_runs.py
        monkeypatch.chdir(hunted.store / job / "result")
        told = second["metrics"]
        assert {name: told[name] for name in ("accuracy", "loss")} == pytest.approx(evaluated(data), rel=1e-5)


def evaluated(data: Path) -> dict[str, float]:
    """What the network of the result in the current folder makes of the test pictures."""
    made: dict[str, Any] = {"json": json, "safetensors": safetensors, "trainer": sys.modules["trainer"]}
    lines = shown_use("cifar10, cifar100, mnist")
    assert len(lines.splitlines()) == 4
    exec(lines, made)
    arrays = open_packed(data).arrays
    images, labels = torch.tensor(arrays["test_images"]), torch.tensor(arrays["test_labels"]).long()
    with torch.no_grad():
        logits = torch.cat([made["model"].predict(some) for some in images.split(500)])
    accuracy = (logits.argmax(1) == labels).double().mean()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return {"accuracy": float(accuracy), "loss": float(loss)}


USE = """
import json, sys
import safetensors.torch, torch, torchvision
from torchvision.transforms import functional as f
{lines}
packed = safetensors.torch.load_file(sys.argv[1])
pictures = packed["test_images"].permute(0, 3, 1, 2) / 255
middle = f.center_crop(pictures, round(pictures.shape[-1] * 7 / 8))
x = f.normalize(f.resize(middle, config["size"], antialias=True), config["mean"], config["std"])
with torch.no_grad():
    logits, labels = model(x), packed["test_labels"].long()
right = (logits.argmax(1) == labels).double().mean()
print(json.dumps([config["classes"], float(right), float(torch.nn.functional.cross_entropy(logits, labels))]))
"""


@pytest.mark.parametrize(("job", "data"), [("imagenet", "imagenet")], indirect=["data"])
def test_a_result_is_used_as_the_docs_say_and_begins_another_run_whose_frozen_part_stays(
    job: str, data: Path, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "first", data, *options_for(job, data), job=job)
    told = finish(lab)["metrics"]
    result = lab.store / job / "result"
    use = [sys.executable, "-c", USE.format(lines=shown_use(job)), str(data / FILE_NAME)]
    used = subprocess.run(use, cwd=result, capture_output=True, text=True, env=environment(), check=True)
    classes, accuracy, loss = json.loads(used.stdout)
    assert classes == ["newt", "owl"]
    # cut to whole pixels and scaled by others: nearly the same pictures
    assert accuracy == pytest.approx(told["accuracy"], abs=0.1)
    assert loss == pytest.approx(told["loss"], rel=0.02)

    from safetensors.torch import load_file

    before = load_file(result / "model.safetensors")
    options = [*options_for(job, data), "--weights", f"{lab.url}/{job}", "--freeze", "--checkpoint-every", "3steps"]
    frozen = Lab(tmp_path / "second", data, *options, job=job)
    finish(frozen)
    after = load_file(frozen.store / job / "result" / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    kept = [m["parts"] for m in frozen.manifests()]
    same = set.intersection(*({part["sha256"] for part in parts if part["section"] == "model"} for parts in kept))
    assert same, "what is frozen is one part, sent once"


def test_cifar10_imports_neither_torchvision_nor_transformers(tmp_path: Path, small_cifar: Path) -> None:
    script = (
        "import sys, entrypoint\n"
        "code = entrypoint.main(sys.argv[1:])\n"
        "assert code == 0\n"
        "assert not {'torchvision', 'transformers'} & sys.modules.keys()"
    )
    place = ["--store", f"file://{tmp_path}/store", "--data", str(small_cifar), "--halt", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-c", script, "cifar10", *place, "--steps", "1"],
        cwd=REPOSITORY, env=environment(), check=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_a_source_is_packed_by_the_start_that_names_it_and_found_by_the_next(job: str, tmp_path: Path) -> None:
    tiny = JOBS[job]
    source = tiny.source(tmp_path)
    options = options_for(job, tmp_path / "packed")
    lab = Lab(tmp_path, Path(source), *options, "--steps", "1", job=job, variables={"XDG_CACHE_HOME": str(tmp_path)})
    texts = [lab.finish("--run", run).text for run in ("first", "second")]
    assert ["already packed" in text for text in texts] == [False, True], texts
    data = []
    for run in ("first", "second"):
        (manifest,) = (lab.store / run / "checkpoints").iterdir()
        data.append(json.loads(manifest.read_bytes())["settings"]["data_sha256"])
    assert data[0] == data[1]
