"""A run that was interrupted any number of times ends with the bits of one that was not."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deaths import MOMENTS, die, random_deaths
from tests.runs import HASHES, Lab

TUTORIAL = ("--preset", "tutorial", "--dropout", "0.2", "--batch-size", "8")


@dataclass(frozen=True)
class Run:
    """Its saves lie so close that three deaths fit into an epoch, and its steps are enough for all deaths."""

    options: tuple[str, ...]
    every: str
    deaths: int
    epochs: int


RUNS = {
    # dropout draws random numbers in each step: a lost random state shows there and only there
    "tutorial-fp32-dropout": Run((*TUTORIAL, "--precision", "fp32"), "20steps", 20, 12),
    "tutorial-bf16-dropout": Run((*TUTORIAL, "--precision", "bf16"), "20steps", 8, 6),
    # both of more steps than a short run has, so that their pictures grow
    "quick-bf16-dropout": Run(
        ("--preset", "quick", "--precision", "bf16", "--dropout", "0.2", "--batch-size", "8"), "3steps", 5, 2
    ),
    "quick-fp32-micro-batches": Run(
        ("--precision", "fp32", "--batch-size", "20", "--micro-batch-size", "8"), "2steps", 5, 3
    ),
}
SOAK = "BATON_SOAK_SEED" in os.environ
SEED = int(os.environ.get("BATON_SOAK_SEED", "20"))  # `make soak` sets others
# one with all threads of the machine, the others with one, beside other tests; see make/test.sh
ALL_THREADS = ("quick-fp32-micro-batches",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.all_threads] * (name in ALL_THREADS)) for name in RUNS]
)
def test_many_deaths_at_random_moments_change_no_bit(name: str, tmp_path: Path, small_cifar: Path) -> None:
    run = RUNS[name]
    deaths, epochs = (20, 14) if SOAK else (run.deaths, run.epochs)
    options = (*run.options, "--epochs", str(epochs))
    quiet = Lab(tmp_path / "quiet", small_cifar, *options, "--checkpoint-every", "0.3s")
    quiet.finish()

    hunted = Lab(tmp_path / "hunted", small_cifar, *options)
    happened, places = Counter[str](), []
    for death in random_deaths(SEED, deaths):
        # counted in steps there is no save within an evaluation, by the clock there is
        every = "0.1s" if death.moment == "evaluation" else run.every
        for container, place in die(hunted, death, "--checkpoint-every", every):
            assert "finished:" not in container.text, "the run is too short for this machine: too few deaths"
            happened[f"{death.end} in {' and '.join(sorted(place.moments))}"] += 1
            places.append(place)
    hunted.finish()
    print(f"seed {SEED}: {dict(happened)}, at steps {[place.step for place in places]}")

    assert len(places) >= deaths
    assert {moment for place in places for moment in place.moments} == MOMENTS.keys()
    steps_per_epoch = int(str(hunted.manifests()[-1]["steps_per_epoch"]))
    within = Counter(place.epoch(steps_per_epoch) for place in places if "start-up" not in place.moments)
    # the second resume within an epoch breaks far oftener than the first (huggingface/datasets#8308)
    assert max(within.values()) >= 3, within
    assert hunted.hashes() == quiet.hashes()
    last, undisturbed = (lab.manifests()[-1]["metrics"] for lab in (hunted, quiet))
    assert last == undisturbed, "of the last evaluation, and of training as its epoch's sums have it"


@pytest.mark.all_threads
def test_uninterrupted_runs_in_fresh_processes_agree(tmp_path: Path, small_cifar: Path) -> None:
    options = ["--epochs", "2", "--batch-size", "100"]
    first, second = (Lab(tmp_path / name, small_cifar, *options) for name in ("first", "second"))
    first.finish()
    second.finish("--checkpoint-every", "0.2s")
    assert first.hashes() == second.hashes()


def test_another_seed_gives_another_run(tmp_path: Path, small_cifar: Path) -> None:
    """Guards the tests above: hashes that never differ would prove nothing."""
    first, second = (
        Lab(tmp_path / seed, small_cifar, "--epochs", "1", "--batch-size", "100", "--seed", seed) for seed in "01"
    )
    first.finish()
    second.finish()
    one, other = first.hashes(), second.hashes()
    assert all(one[name] != other[name] for name in HASHES)
