"""What the documents say is so: commands run or are understood, links lead somewhere, the reference is of this code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.docs import pages
from tests.docs.pages import PAGES, REPOSITORY
from tests.runs import environment

MADE_UP = {"trainer/jobs/linear.py"}  # which docs/jobs.md shows how to add, and tests/chaos/test_new_job.py adds
RUN = [page for page in PAGES if pages.to_run(page)]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository's own files in a folder of their own, with an environment that holds the lock already."""
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True)
    names = [name for name in listed.stdout.decode().split("\0") if name and (REPOSITORY / name).is_file()]
    if listed.returncode:  # an archive of it
        names = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*") if path.is_file()]
    for name in names:
        if name == ".gitignore" or not name.startswith((".", "tests/", "data/", "store/")):
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    shutil.copy2(REPOSITORY / "requirements.lock", venv / ".installed-requirements.lock")
    return tmp_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_what_a_page_says_to_type_works_and_leaves_the_tree_clean(page: Path, clone: Path) -> None:
    before = {path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file()}
    # as in a shell of its own: what the make that runs the tests was told is not for this one
    clean = {name: value for name, value in environment().items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", pages.to_run(page)],
        cwd=clone,
        env={**clean, "OMP_NUM_THREADS": threads, "CIFAR10": "synthetic"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    for expected in re.findall(r"^# prints: (.+)$", pages.to_run(page), re.MULTILINE):
        assert expected in done.stdout, f"{expected!r} is not in\n{done.stdout}"
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    seen = subprocess.run(["git", "ls-files", "-zo", "--exclude-standard"], cwd=clone, capture_output=True, check=True)
    assert set(seen.stdout.decode().split("\0")) - before == {""}, "git status would show them"


def test_make_tells_of_a_halt_file_once(clone: Path) -> None:
    (clone / "halt").mkdir()
    (clone / "halt" / "halt").touch()
    done = subprocess.run(["make", "cifar10"], cwd=clone, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\S+ not started: halt file halt/halt is there; remove it to start\n", done.stdout)


def test_what_is_to_be_pasted_as_json_is_json() -> None:
    pasted = [json.loads(text) for page in PAGES for text in pages.documents(page)]
    assert len(pasted) >= 7


# Where the pages and scripts give a thing in a cloud its name, and what that cloud takes for one, by its manual. What
# is written in capitals is the reader's to fill in.
POOL = r"(?!gcp-)[a-z0-9-]{4,32}"
CLOUDS_NAMES = {
    r"workload-identity-pools create ([\w-]+)": POOL,
    r"workloadIdentityPools/([\w-]+)": POOL,
    r"workload-identity-pools providers create-\w+ ([\w-]+)": POOL,
    r"\$POOL/providers/([\w-]+)": POOL,
    r"service-accounts create ([\w-]+)": r"[a-z][a-z0-9-]{4,28}[a-z0-9]",
    r"([\w-]+)@[\w$]+\.iam\.gserviceaccount\.com": r"[a-z][a-z0-9-]{4,28}[a-z0-9]",
    r"gcloud iam roles create ([\w.-]+)": r"[A-Za-z0-9_.]{3,64}",
    r"aws iam create-role --role-name (\S+)": r"[\w+=,.@-]{1,64}",
    r"az identity create --name ([\w-]+)": r"[A-Za-z0-9][\w-]{2,127}",
    r"az aks nodepool add .*?--name (\w+)": r"[a-z][a-z0-9]{0,11}",
}


@pytest.mark.parametrize("given", CLOUDS_NAMES)
def test_what_a_page_or_script_calls_a_thing_in_a_cloud_is_a_name_there(given: str) -> None:
    scripts = [path for folder in ("launch", "make") for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    text = "\n".join(path.read_text() for path in [*PAGES, *scripts]).replace("\\\n", " ")
    names = {name for name in re.findall(given, text) if not name.isupper()}
    assert names
    assert {name for name in names if re.fullmatch(CLOUDS_NAMES[given], name) is None} == set()


@pytest.mark.parametrize(
    ("command", "first", "least", "most"),
    [
        ("gcloud container node-pools create", "--num-nodes", "--min-nodes", "--max-nodes"),
        ("eksctl create nodegroup", "--nodes", "--nodes-min", "--nodes-max"),
        ("az aks nodepool add", "--node-count", "--min-count", "--max-count"),
    ],
)
def test_a_pool_of_nodes_begins_within_its_own_bounds(command: str, first: str, least: str, most: str) -> None:
    """az and gcloud begin with 3 where they aren't told, and az refuses what is out of bounds."""
    found = [line.words for page in PAGES for line in pages.commands(page) if f" {command} " in f" {line} "]
    assert found
    for words in found:
        low, count, high = (int(words[words.index(option) + 1]) for option in (least, first, most))
        assert low <= count <= high


def test_the_tutorial_is_run() -> None:
    assert "tutorial.md" in [page.name for page in RUN]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_line_understands_every_command(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from console.commands import those_given
    from entrypoint import baton
    from trainer.names import job_names
    from trainer.settings import Settings, fields_of

    for name in list(os.environ):
        if name.startswith("BATON_"):
            monkeypatch.delenv(name)
    for line in pages.commands(page):
        words = pages.arguments(line)
        if not words or words[0] == "linear":
            continue
        root = click.Context(baton, info_name="baton")
        try:
            name, command, rest = baton.resolve_command(root, list(words))
            assert command is not None
            with command.make_context(name, rest, parent=root) as context:
                shared = {f.name for f in fields_of()}
                given = those_given({n: value for n, value in context.params.items() if n in shared})
                Settings.of(given)
                if name == "data":
                    assert context.params["job"] in job_names()
        except click.exceptions.Exit:
            continue  # --help
        except Exception as e:
            pytest.fail(f"{line}: {e.format_message() if isinstance(e, click.ClickException) else e}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_container_that_writes_to_a_folder_here_is_given_one_and_its_owner(page: Path) -> None:
    """Docker makes one that isn't there as root's, and the image's own user may be anybody here."""
    made: set[str] = set()
    for line in pages.commands(page):
        if line.words[0] == "mkdir":
            made.update(line.words)
        for word in line.words if line.words[:2] == ("docker", "run") else ():
            mount = re.fullmatch(r"\$PWD/(\w+):(/\w+)", word)
            if mount is not None:
                assert mount[1] in made, str(line)
                assert mount[2] == "/halt" or "--user" in line.words, str(line)


def test_a_container_that_trains_by_the_cuda_image_is_given_the_gpus() -> None:
    """Else it computes on the CPU of a machine that is paid for its GPU."""
    found = [line for page in PAGES for line in pages.commands(page) if pages.runs_a_job_for_gpus(line)]
    assert len(found) >= 5
    assert [str(line) for line in found if "--gpus all" not in str(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_is_there(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = {name for names in re.findall(r"^([a-z0-9 -]+):(?!=)", makefile, re.MULTILINE) for name in names.split()}
    assert {"cifar10", "push-gcp", "relay"} <= targets
    texts = [" ".join(line.words) for line in pages.commands(page)] + re.findall(r"`(make [^`]+)`", page.read_text())
    for text in texts:
        if text.startswith("make "):
            words = [word for word in text.split() if "=" not in word]
            named = [word for word in words[1:2] if re.fullmatch(r"[a-z][a-z0-9-]*", word)]
            assert set(named) <= targets, f"{page.name}: {text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_of_files_lead_somewhere(page: Path) -> None:
    for link in pages.links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in pages.anchors(target), f"{page.name}: {link}"
    for name in pages.files(page):
        assert (REPOSITORY / name).exists() or name in MADE_UP, f"{page.name}: {name}"


def test_make_bench_runs_all_that_the_readme_names_but_what_it_says_it_does_not() -> None:
    measured = (REPOSITORY / "README.md").read_text().partition("## Measured")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)\.py\b", measured))
    bench = (REPOSITORY / "Makefile").read_text().partition("\nbench:")[2].partition("\nsoak:")[0]
    run = {name for name in named if re.search(rf'"{name}\b', bench)}
    assert named - run == {"handover", "best"}
    assert "only `handover.py`, which wants an image, and `best.py`, which wants" in " ".join(measured.split())
    assert "but for those of handover.py and best.py" in bench


def test_the_reference_is_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, str(REPOSITORY / "make" / "reference.py")], capture_output=True, text=True, env=environment()
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == (REPOSITORY / "docs" / "reference.md").read_text(), "run `make reference`"


def test_a_command_that_nobody_understands_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        'Text\n\n    $ docker run -v "$PWD/x:/x" baton:cuda cifr10 --lr 1 | tail     # why\n    make nothing\n'
    )
    first, _, last = pages.commands(page)
    assert pages.arguments(first) == ["cifr10", "--lr", "1"]
    assert last.words == ("make", "nothing")
