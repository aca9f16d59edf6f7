"""The process dies at every store call in turn; each time the next attempt goes on from a good checkpoint."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Lab

# 16 steps, 2 epochs: claims, signs of life, saves, evaluations, result and all
OPTIONS = [
    "--preset",
    "tutorial",
    "--batch-size",
    "125",
    "--dropout",
    "0.2",
    "--epochs",
    "1",
    "--checkpoint-every",
    "4steps",
]
CALLS = ("put", "get", "stat", "list", "delete")


class DyingStore:
    """A store whose `number`-th call the process does not survive: it dies before it, or right after it."""

    def __init__(self, store: Any, number: int, when: str) -> None:
        self._store = store
        self._left = itertools.count(number, -1)
        self._when = when

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in CALLS:
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            last = next(self._left) == 1
            if last and self._when == "before":
                os.kill(os.getpid(), 9)
            try:
                result = method(*args, **kwargs)
                return list(result) if name == "list" else result
            finally:  # also after a call that found nothing
                if last and self._when == "after":
                    os.kill(os.getpid(), 9)

        return call


def in_a_child(work: Callable[[], int]) -> int:
    """Run `work` in a forked process, which has torch imported already; returns its exit status as `os.wait` has it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_on_the_calls() -> None:
    """Without this, how many there are is a matter of speed, and some run would live through its last ones.

    Training waits for each save and the clean-up after it, so that the next is due when it is; of the signs of life
    that follow saves, a second apart at least, there are none: the first and the last stay, by the same calls.
    """
    from trainer import signs
    from trainer.saver import Saver

    start = Saver.start

    def start_and_wait(saver: Saver, save: Any) -> None:
        start(saver, save)
        for thread in threading.enumerate():
            if thread.name == "saver":
                thread.join()

    Saver.start = start_and_wait
    signs.NEWS_S = signs.SIGN_S


def train(lab: Lab, log: Path, wrap: Callable[[Any], Any] = lambda store: store) -> int:
    """The entrypoint's own main, with the store wrapped."""
    import console.train
    import entrypoint

    count_on_the_calls()
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
    opened = console.train.open_store
    console.train.open_store = lambda url, **options: wrap(opened(url, **options))
    place = ["--store", lab.url, "--halt", str(lab.halt), "--data", str(lab.data)]
    return entrypoint.main(["cifar10", *place, *lab.options])


class CountingStore(DyingStore):
    """Counts its calls in a file, a byte each."""

    def __init__(self, store: Any, file: Path) -> None:
        super().__init__(store, 0, "never")
        self._file = file

    def __getattr__(self, name: str) -> Any:
        if name in CALLS:
            with open(self._file, "ab") as file:
                file.write(b".")
        return super().__getattr__(name)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, small_cifar: Path) -> Lab:
    import trainer.run  # noqa: F401  (imported before forking, so that each child starts at once)

    lab = Lab(tmp_path_factory.mktemp("quiet"), small_cifar, *OPTIONS)
    folder = lab.store.parent
    assert in_a_child(lambda: train(lab, folder / "log", lambda store: CountingStore(store, folder / "calls"))) == 0
    return lab


@pytest.mark.parametrize("when", ["before", "after"])
def test_death_at_any_store_call_loses_nothing_committed(
    when: str, tmp_path: Path, small_cifar: Path, quiet: Lab
) -> None:
    expected = quiet.hashes()
    calls = (quiet.store.parent / "calls").stat().st_size
    assert calls > 25
    # right after a call is nearly right before the next: of both kinds every second one, and so each place once
    for number in range(1, calls + 1, 1 if "BATON_SOAK_SEED" in os.environ else 2):
        lab = Lab(tmp_path / str(number), small_cifar, *OPTIONS)
        log = tmp_path / f"{number}.log"
        ended = in_a_child(lambda: train(lab, log, lambda store: DyingStore(store, number, when)))  # noqa: B023
        committed = {(m["attempt"], m["step"]) for m in lab.manifests()}
        assert ended == -9, log.read_text()
        assert in_a_child(lambda: train(lab, log)) == 0, log.read_text()  # noqa: B023
        text = log.read_text()
        assert "is bad" not in text
        if committed:
            attempt, step = max(committed)
            finished = "is finished" in text
            assert finished or f"checkpoint {attempt:06d}-{step:08d} is the newest good one" in text, text
        assert lab.hashes() == expected, f"died {when} call {number}"
    print(f"died {when} calls of {calls} to the store")
