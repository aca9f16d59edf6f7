"""A run that was interrupted any number of times ends with the bits of one that was not."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.runs import HASHES, Interruption, Lab, interrupt, random_interruptions

RUNS = {
    # dropout draws random numbers in each step: a lost random state shows there and only there
    "tutorial-fp32-dropout": ["--preset", "tutorial", "--precision", "fp32", "--dropout", "0.2", "--batch-size", "16"],
    "tutorial-bf16-dropout": ["--preset", "tutorial", "--precision", "bf16", "--dropout", "0.2", "--batch-size", "16"],
    "quick-bf16-dropout": ["--preset", "quick", "--precision", "bf16", "--dropout", "0.2", "--batch-size", "100"],
    "quick-fp32-micro-batches": ["--precision", "fp32", "--batch-size", "128", "--micro-batch-size", "48"],
}
SOAK = "BATON_SOAK_SEED" in os.environ
SEED = int(os.environ.get("BATON_SOAK_SEED", "20"))  # `make soak` sets others
WHOLE = "tutorial-fp32-dropout"  # of the others there is a sample, but in `make soak`
# two with all threads of the machine, the others with one, beside other tests; see make/test.sh
ALL_THREADS = (WHOLE, "quick-fp32-micro-batches")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.all_threads] * (name in ALL_THREADS)) for name in RUNS]
)
def test_many_deaths_at_random_moments_change_no_bit(name: str, tmp_path: Path, small_cifar: Path) -> None:
    epochs, deaths = (20 if name.startswith("tutorial") else 12, 20) if SOAK or name == WHOLE else (5, 7)
    options = [*RUNS[name], "--epochs", str(epochs), "--checkpoint-every", "0.3s"]
    quiet = Lab(tmp_path / "quiet", small_cifar, *options)
    quiet.finish()

    hunted = Lab(tmp_path / "hunted", small_cifar, *options)
    happened: Counter[str] = Counter()
    steps = []
    for what in random_interruptions(SEED, deaths):
        container = interrupt(hunted, what)
        happened[f"{what.end} in {what.moment}"] += 1
        steps.append(hunted.manifests()[-1]["step"] if hunted.manifests() else 0)
        assert "finished:" not in container.text, "the run is too short for this machine: too few deaths"
    hunted.finish()
    print(f"seed {SEED}: {dict(happened)}, newest step after each: {steps}")

    assert hunted.hashes() == quiet.hashes()


def test_three_deaths_within_one_epoch_change_no_bit(tmp_path: Path, small_cifar: Path) -> None:
    """The second resume within an epoch breaks far oftener than the first (huggingface/datasets#8308)."""
    options = [*RUNS["tutorial-fp32-dropout"], "--batch-size", "8", "--epochs", "1", "--checkpoint-every", "10steps"]
    quiet = Lab(tmp_path / "quiet", small_cifar, *options)
    quiet.finish()
    hunted = Lab(tmp_path / "hunted", small_cifar, *options)
    for end in ("SIGTERM", "SIGKILL", "SIGKILL"):
        container = hunted.start()
        container.wait_for("durable after")
        interrupted = Interruption(end, "saving", 0.0)
        container.signal(15 if end == "SIGTERM" else 9)
        assert container.wait() in (75, -9), interrupted
    attempts = {m["attempt"] for m in hunted.manifests()}
    assert attempts == {1, 2, 3}, "each attempt must have gone on within the epoch and saved"
    hunted.finish()
    assert hunted.hashes() == quiet.hashes()


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
