"""`make image` lays weights out, and the Dockerfile checks and takes them, under the names that they have in weights/.

docker is a stand-in: the Dockerfile's own lines are run here, on folders of the test's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import save_file
from torchvision import models

from tests.bert_makers import small_model
from tests.launch.parsers import REPOSITORY
from tests.launch.stand_ins import StandIns
from tests.runs import environment
from trainer import pretrained, weights

NETWORK = "shufflenet_v2_x0_5"
WEIGHTS = f"bert:google/bert_uncased imagenet:{NETWORK}"
FOLDER = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES = [*(f"google/bert_uncased/{name}" for name in FOLDER), f"{NETWORK}.safetensors"]


def kept_weights(folder: Path) -> None:
    """As `entrypoint.py weights imagenet` keeps them, and a model's folder."""
    small_model(folder, "google/bert_uncased")
    state = models.get_model(NETWORK).state_dict()
    published = weights.published("imagenet", NETWORK)
    save_file(state, folder / f"{NETWORK}.safetensors", weights._said(published, state))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def the_dockerfiles_loop(root: Path) -> str:
    """Over the models, with /source, /layer and /weights below `root`."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", "\n")
    found = re.search(r"mkdir -p /layer/weights/app/weights;.*?(?=\n    : 'what doctor)", text, re.DOTALL)
    assert found is not None
    here = found[0].replace("/opt/venv/bin/python /app/", f"{sys.executable} {REPOSITORY}/")
    return re.sub(r"(?<=[\s\"])/(source|layer|weights)\b", rf"{root}/\1", here)


def staged(root: Path, laid: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the Dockerfile makes of what `make image` laid out."""
    shutil.copytree(laid, root / "source")  # as COPY .build/weights*/ /source/ does
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", the_dockerfiles_loop(root)],
        capture_output=True, text=True, env=environment(**variables),
    )  # fmt: skip


def make_image(tree: Path, weights: str) -> subprocess.CompletedProcess[str]:
    """make/image.sh in a tree of its own, up to where docker would build."""
    shutil.copytree(REPOSITORY / "make", tree / "make")
    stand_ins = StandIns(tree / "bin")
    stand_ins.add("docker", "echo docker was asked")
    variables = stand_ins.environment | {"DOCKER": "docker", "WEIGHTS": weights, "CIFAR10": "synthetic"}
    return subprocess.run(["make/image.sh"], cwd=tree, capture_output=True, text=True, env=variables)


def test_weights_whose_name_has_a_folder_in_it_keep_it_all_the_way_into_the_image(tmp_path: Path):
    tree = tmp_path / "tree"
    kept_weights(tree / "weights")
    model = "google/bert_uncased"  # as a whole repository of the hub's, downloaded; and as its cache has it, by links
    for name in (
        *(f"{NETWORK}-other.safetensors", "google/another/config.json"),
        *(f"{model}/pytorch_model.bin", f"{model}/onnx/model.onnx", f"{model}/.cache/huggingface/config.json.lock"),
    ):
        path = tree / "weights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    linked = tree / "weights" / model / "model.safetensors"
    linked.symlink_to(linked.rename(tmp_path / "blob"))
    done = make_image(tree, WEIGHTS)
    assert done.returncode == 0, done.stderr
    assert "docker was asked" in done.stdout
    laid = tree / ".build" / "weights"
    assert files_in(laid) == FILES
    assert not (laid / model / "model.safetensors").is_symlink()

    done = staged(tmp_path / "stage", laid, WEIGHTS=WEIGHTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_in(tmp_path / "stage" / "layer" / "weights" / "app" / "weights") == FILES


def test_weights_that_have_changed_stop_the_build_with_a_line(tmp_path: Path):
    kept_weights(tmp_path / "weights")
    file = tmp_path / "weights" / f"{NETWORK}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    done = staged(tmp_path, tmp_path / "weights", WEIGHTS=f"imagenet:{NETWORK}")
    assert done.returncode == 78
    (line,) = done.stdout.splitlines()
    assert line.endswith(
        "source/shufflenet_v2_x0_5.safetensors: its bytes have changed since it was written; get it again"
    )
    assert files_in(tmp_path / "layer") == []


def test_a_model_that_the_build_cannot_fetch_is_missed_before_it_begins_with_the_command_that_gets_it(tmp_path: Path):
    done = make_image(tmp_path, "bert:bert-base-uncased")
    assert done.returncode == 78
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{pretrained.download('bert-base-uncased')} --local-dir weights/bert-base-uncased" in line
