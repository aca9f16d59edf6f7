"""`make image` lays weights out, and the Dockerfile takes them, under the names that they have in weights/.

docker is a stand-in: the Dockerfile's own lines are run here, on folders of the test's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.launch.parsers import REPOSITORY
from tests.launch.stand_ins import StandIns

WEIGHTS = "imagenet:tiny bert:google/bert_uncased bert:plain"
FILES = ["google/bert_uncased/config.json", "google/bert_uncased/model.safetensors", "plain/a.json", "tiny.safetensors"]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def the_dockerfiles_loop(root: Path) -> str:
    """Over the models, with /source, /layer and /weights below `root`."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", "\n")
    found = re.search(r"mkdir -p /layer/weights/app/weights;.*?(?=\n    : 'what doctor)", text, re.DOTALL)
    assert found is not None
    return re.sub(r"(?<=[\s\"])/(source|layer|weights)(?=/)", rf"{root}/\1", found[0])


def test_weights_whose_name_has_a_folder_in_it_keep_it_all_the_way_into_the_image(tmp_path: Path):
    tree = tmp_path / "tree"
    shutil.copytree(REPOSITORY / "make", tree / "make")
    for name in [*FILES, "tiny-other.safetensors", "google/another/config.json"]:
        path = tree / "weights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    stand_ins = StandIns(tmp_path / "bin")
    stand_ins.add("docker")
    environment = stand_ins.environment | {"DOCKER": "docker", "WEIGHTS": WEIGHTS, "CIFAR10": "synthetic"}
    done = subprocess.run(["make/image.sh"], cwd=tree, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    laid = tree / ".build" / "weights"
    assert files_in(laid) == FILES

    root = tmp_path / "stage"
    shutil.copytree(laid, root / "source")  # as COPY .build/weights*/ /source/ does
    loop = the_dockerfiles_loop(root)
    subprocess.run(["bash", "-euo", "pipefail", "-c", loop], check=True, env=environment)
    assert files_in(root / "layer" / "weights" / "app" / "weights") == FILES
