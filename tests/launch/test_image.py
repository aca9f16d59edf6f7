"""`make image` lays weights out, and the Dockerfile checks and takes them, under the names that they have in weights/.
What `make cifar10` takes as CIFAR-10 it takes too.

docker is a stand-in: the Dockerfile's own lines are run here, on folders of the test's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torchvision import models

from tests.bert_makers import small_model
from tests.launch.parsers import REPOSITORY
from tests.launch.stand_ins import StandIns
from tests.runs import environment
from tests.unit import data_makers
from trainer import pretrained, weights
from trainer.data.pack import pack

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


def make_image(tree: Path, weights: str, cifar10: str = "synthetic") -> subprocess.CompletedProcess[str]:
    """make/image.sh in a tree of its own, up to where docker would build."""
    shutil.copytree(REPOSITORY / "make", tree / "make")
    stand_ins = StandIns(tree / "bin")
    stand_ins.add("docker", "echo docker was asked")
    variables = stand_ins.environment | {"DOCKER": "docker", "WEIGHTS": weights, "CIFAR10": cifar10}
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


def packed_labels(source: Path, folder: Path) -> list[int]:
    packed = pack(data_makers.SMALL, str(source), folder, say=lambda line: None)
    return sorted(packed.arrays["train_labels"].tolist())


def test_a_folder_of_pictures_is_packed_alike_though_classes_and_pictures_in_it_are_links(tmp_path: Path):
    folder = data_makers.laid_out(tmp_path / "pictures", data_makers.tree(data_makers.small_splits()))
    classes = sorted((folder / "train").iterdir())
    classes[0].symlink_to(classes[0].rename(tmp_path / "elsewhere"))
    picture = next(classes[1].iterdir())
    os.link(picture, picture.with_name("again.png"))
    picture.with_name("once-more.png").symlink_to(picture)
    done = make_image(tmp_path / "tree", "", str(folder))
    assert done.returncode == 0, done.stderr
    laid = tmp_path / "tree" / ".build" / "source"
    assert files_in(laid) == ["cifar10.tar"]
    labels = packed_labels(laid / "cifar10.tar", tmp_path / "image")
    assert labels == packed_labels(folder, tmp_path / "here")
    assert len(labels) == data_makers.SMALL.train_count + 2


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_the_binary_archive_extracted_stays_a_folder(inside: str, tmp_path: Path):
    archive, _ = data_makers.binary_archive(tmp_path, data_makers.small_splits())
    shutil.unpack_archive(archive, tmp_path / "extracted")
    given = tmp_path / "extracted" / inside
    done = make_image(tmp_path / "tree", "", str(given))
    assert done.returncode == 0, done.stderr
    (laid,) = (tmp_path / "tree" / ".build" / "source").iterdir()  # as the Dockerfile wants it
    assert packed_labels(laid, tmp_path / "image") == packed_labels(given, tmp_path / "here")


def test_pickles_extracted_are_refused_before_the_build_begins(tmp_path: Path):
    archive, _ = data_makers.python_archive(tmp_path, data_makers.small_splits())
    shutil.unpack_archive(archive, tmp_path / "extracted")
    done = make_image(tmp_path / "tree", "", str(tmp_path / "extracted"))
    assert (done.returncode, done.stdout) == (78, "")
    (line,) = done.stderr.splitlines()
    assert "give the archive itself, cifar-10-python.tar.gz" in line
