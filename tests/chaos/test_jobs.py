"""Every job, in fp32 and bf16: killed within an epoch, halted, and its result used."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.jobs import JOBS, SHORT, options_for, packed
from tests.runs import REPOSITORY, Lab, environment
from trainer.data.packed import FILE_NAME, open_packed
from trainer.jobs import cifar10


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(request.param, tmp_path_factory.mktemp(request.param))


def shown_use(section: str) -> str:
    """The lines with which docs/jobs.md makes a network of a result."""
    page = (REPOSITORY / "docs" / "jobs.md").read_text()
    part = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.search(r"^\*\*Result\.\*\*(?:.+\n)+\n((?:    .+\n)+)", part, re.MULTILINE)
    assert found is not None
    return textwrap.dedent(found[1])


def finish(lab: Lab, job: str) -> dict[str, object]:
    container = lab.start(job=job)
    assert container.wait(300) == 0, container.text
    result: dict[str, object] = json.loads((lab.store / job / "result.json").read_bytes())
    return result


ENDS = ((signal.SIGTERM, 75), (signal.SIGKILL, -9), ("halt", 0))
# of cifar10 in bf16 test_exactness.py has the networks that a CPU computes in it within seconds
CASES = [*((job, "fp32", ENDS) for job in JOBS), ("imagenet", "bf16", ENDS), ("bert", "bf16", ENDS),
         ("cifar100", "bf16", ENDS[1:2]), ("mnist", "bf16", ENDS[1:2])]  # fmt: skip


@pytest.mark.parametrize(
    ("job", "data", "precision", "ends"),
    [pytest.param(case[0], *case, id="-".join(case[:2])) for case in CASES],
    indirect=["data"],
)
def test_a_run_that_was_ended_has_the_bits_of_one_that_never_was_and_a_result_as_good_as_told(
    job: str,
    data: Path,
    precision: str,
    ends: tuple[tuple[int | str, int], ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*options_for(job, data), *SHORT, "--precision", precision]
    quiet, hunted = (Lab(tmp_path / name, data, *options) for name in ("quiet", "hunted"))
    for end, code in ends:
        container = hunted.start(job=job)
        container.wait_for("durable after")
        if isinstance(end, str):
            (hunted.halt / end).touch()
        else:
            container.signal(end)
        assert container.wait() == code, container.text
        (hunted.halt / "halt").unlink(missing_ok=True)
    assert "finished:" not in container.text, "too short a run: its end came first"
    first, second = finish(quiet, job), finish(hunted, job)
    for name in ("weights_sha256", "state_sha256", "order_sha256", "metrics"):
        assert first[name] == second[name]
    if job in cifar10.KINDS and precision == "fp32":  # others: below, and test_bert_runs.py
        monkeypatch.chdir(hunted.store / job / "result")
        told = second["metrics"]
        assert isinstance(told, dict)
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
    lab = Lab(tmp_path / "first", data, *options_for(job, data))
    told: Any = finish(lab, job)["metrics"]
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
    frozen = Lab(tmp_path / "second", data, *options)
    finish(frozen, job)
    after = load_file(frozen.store / job / "result" / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    kept = [m["parts"] for m in frozen.manifests(job)]
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
