"""Every job in tests/jobs.py keeps the promises of cifar10: killed within an epoch, halted, and its result used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import JOBS, SHORT, options_for, packed
from tests.runs import REPOSITORY, Lab, environment


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(request.param, tmp_path_factory.mktemp(request.param))


def finish(lab: Lab, job: str) -> dict[str, object]:
    container = lab.start(job=job)
    assert container.wait(300) == 0, container.text
    result: dict[str, object] = json.loads((lab.store / job / "result.json").read_bytes())
    return result


@pytest.mark.parametrize(
    ("job", "data", "precision"),
    # cifar100 and mnist compute as cifar10 does, whose own tests have both
    [*((job, job, "fp32") for job in JOBS), *((job, job, "bf16") for job in ("imagenet", "bert"))],
    indirect=["data"],
)
def test_a_run_ended_thrice_has_the_bits_of_one_that_never_was(
    job: str, data: Path, precision: str, tmp_path: Path
) -> None:
    options = [*options_for(job, data), *SHORT, "--precision", precision]
    quiet, hunted = (Lab(tmp_path / name, data, *options) for name in ("quiet", "hunted"))
    for end, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9), ("halt", 0)):
        container = hunted.start(job=job)
        container.wait_for("durable after")
        if isinstance(end, str):
            (hunted.halt / end).touch()
        else:
            container.signal(end)
        assert container.wait() == code, container.text
        (hunted.halt / "halt").unlink(missing_ok=True)
    assert "finished:" not in container.text, "too short a run: the halt came after its end"
    first, second = finish(quiet, job), finish(hunted, job)
    for name in ("weights_sha256", "state_sha256", "order_sha256", "metrics"):
        assert first[name] == second[name]


USE = """
import json, sys
import safetensors.torch, torch, torchvision
config = json.load(open("config.json"))
model = torchvision.models.get_model(config["model"], **config["arguments"])
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
model.eval()
with torch.no_grad():
    print(config["classes"][model(torch.zeros(1, 3, config["size"], config["size"])).argmax(1)])
"""


@pytest.mark.parametrize(("job", "data"), [("imagenet", "imagenet")], indirect=["data"])
def test_a_result_is_used_as_the_docs_say_and_begins_another_run_whose_frozen_part_stays(
    job: str, data: Path, tmp_path: Path
) -> None:
    page = (REPOSITORY / "docs" / "jobs.md").read_text()
    assert all(line in page for line in USE.splitlines()[3:6]), "docs/jobs.md shows these lines"
    lab = Lab(tmp_path / "first", data, *options_for(job, data))
    finish(lab, job)
    result = lab.store / job / "result"
    used = subprocess.run(
        [sys.executable, "-c", USE], cwd=result, capture_output=True, text=True, env=environment(), check=True
    )
    assert used.stdout.strip() in ("owl", "newt")

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
