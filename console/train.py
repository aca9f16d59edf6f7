"""Training, wired together: who listens for notices, where data and checkpoints come from, who shows how far it is.

Whatever can begin before torch is imported, or beside it, is begun here.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console import logs
from console.commands import DATA, stop_grace_s
from storage import PATIENCE_S, open_store
from storage.retry import Retrying
from trainer import ranks
from trainer.exits import ExitCode, OtherRun, UserError
from trainer.names import check_preset, dataset_of, of_preset, presets_of
from trainer.settings import Settings, check_changes
from watchers import HaltWatcher, Mailbox, Stopped, Watch, Watcher, drill, signals
from watchers.drill import DrillWatcher
from watchers.unheeded import UnheededWatcher

if TYPE_CHECKING:
    from console.tensorboard import Following
    from trainer.data.packed import Packed
    from trainer.history import History
    from watchers.metadata import Instance

log = logging.getLogger("baton")

START_TRY_S = 60.0  # how long a store that is away is waited for before the first step


def train(job: str, given: dict[str, Any], allow_change: tuple[str, ...], command: list[str]) -> int:
    """Train a run, or go on; returns the exit code. `command`: what starts Python with this same line."""
    from trainer.early import Early
    from trainer.ending import exit_code_for

    settings = Settings.of(given)
    check_changes(allow_change)
    check_preset(settings.preset, presets_of(job))
    if not settings.no_deterministic:
        # CUDA's matrix library computes the same way twice only with this (docs: cuBLAS, results reproducibility)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rank = ranks.Rank.of(os.environ)
    if rank.count > 1:
        # an exchange that fails shall end the process and not itself alone: what a GPU was told to do after it would be
        # done with whatever it left (torch's ProcessGroupNCCL.hpp, SkipCleanUp)
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "3"
    if rank.number:
        logs.say_only_errors(f"process {rank.number} of {rank.count}")
    mailbox = Mailbox()
    signals.install(mailbox, stop_grace_s())
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signals.heed_launcher(mailbox, stop_grace_s())
    halt = HaltWatcher(settings.halt)
    if (notice := halt.check()) is not None:
        log.info("not started: %s; remove it to start", notice.detail)
        return ExitCode.DONE if notice.source == "halt" else settings.preempted_exit_code
    if "halt" in given:
        check_halt(settings.halt)
    if rank.count == 1 and (count := ranks.processes(settings.nproc, settings.device)) > 1:
        from trainer import processes

        try:
            return processes.train(count, command, mailbox)
        except Stopped as e:
            return exit_code_for(e, settings)

    gc.disable()  # until all is imported, see trainer/startup.py
    watched: list[Watcher] = [halt] if rank.local == 0 else []  # one process of a machine listens for all
    if rank.number == 0:
        watched.append(UnheededWatcher(mailbox))
        watched += [DrillWatcher(*one) for one in drill.parse(settings.drill)]
    watch = Watch(watched, mailbox)
    wanted: dict[str, Any] = {
        "job": job,
        "given": given,
        "allow_change": allow_change,
        "rank": rank,
        "mailbox": mailbox,
        "instance": Early(lambda: find_cloud(settings.cloud, watch) if rank.local == 0 else None, "cloud"),
    }

    def find_data() -> None:
        wanted["data"] = Early(lambda: packed_data(job, settings, rank, mailbox), "data")

    try:
        if rank.number:
            find_data()
            from trainer.follow import follow
            from trainer.prepare import Wanted

            return follow(Wanted(**wanted))
        return lead(settings, wanted, halt, watch, find_data)
    except Stopped as e:
        if (notice := halt.check()) is not None:  # it outranks a SIGTERM that came with it
            mailbox.post(notice)
        stop = mailbox.stop or e.notice
        log.info("stopped before training: %s; the run's checkpoints are as they were", stop.detail)
        return exit_code_for(Stopped(stop), settings)
    finally:
        watch.close()


def check_halt(path: str) -> None:
    """Raise `UserError` for a file in the place of the halt folder: whoever touches it would wait for a stop."""
    if os.path.isfile(path):
        folder = os.path.dirname(path) if os.path.basename(path) == "halt" else ""
        raise UserError(f"--halt {path}: is a file; give the folder that it is to be in: --halt {folder or 'DIR'}")
    if not os.path.isdir(path):
        what = "is no folder" if os.path.exists(path) else "isn't there"
        log.warning("--halt %s %s: to stop this run, make that folder and a file named halt in it", path, what)


def lead(
    settings: Settings, wanted: dict[str, Any], halt: HaltWatcher, watch: Watch, find_data: Callable[[], None]
) -> int:
    """Train as the process that has the run's store, and a display."""
    from trainer import libraries
    from trainer.early import Early

    libraries.import_natives(settings.store)
    loading = Early(libraries.load, "libraries")

    from console.progress import Lines, Live
    from trainer.history import History

    mailbox: Mailbox = wanted["mailbox"]

    def patience() -> float:
        deadline = mailbox.deadline
        return PATIENCE_S if deadline is None else min(PATIENCE_S, max(1.0, deadline - time.time()))

    def pause(seconds: float) -> None:
        mailbox.pause(seconds)
        mailbox.check()

    store = open_store(settings.store, patience=patience)
    history = History(Retrying(store, lambda tried: START_TRY_S - tried, pause), settings.run or wanted["job"])
    checkpoint = Early(lambda: history.newest_good(check=mailbox.check), "newest-checkpoint")
    display = Live() if settings.log == "auto" and sys.stdout.isatty() else Lines()
    curves = following(settings.tensorboard, history)
    try:
        loading.result(mailbox)
        find_data()  # not before: numpy, which it wants, is native in many parts
        from trainer import run

        request = run.Request(
            **wanted,
            history=history,
            checkpoint=checkpoint,
            stop_grace_s=stop_grace_s(),
            halt=halt,
            watch=watch,
            show=display.show,
            show_every_s=display.every_s,
            curves=curves,
        )
        return run.train(request)
    except OtherRun as e:
        logs.say_synthetic(on=e.synthetic)  # what is said of it is not about the data here
        raise
    finally:
        if curves is not None:
            curves.close()
        display.close()


def packed_data(job: str, settings: Settings, rank: ranks.Rank, mailbox: Mailbox) -> Packed:
    """The job's data, whole: one process of a machine checks that. Raises `UserError`."""
    from trainer.data.pack import locate
    from trainer.data.packed import no_data

    dataset = dataset_of(job)
    if dataset is None:
        if settings.data:
            raise UserError(f"--data: {job} takes no data: its DATASET is None", ExitCode.USAGE)
        return no_data()
    packed = locate(
        dataset,
        settings.data or None,
        DATA / dataset,
        options={
            "model": settings.model or of_preset(job, settings.preset, "model"),
            "size": settings.size or of_preset(job, settings.preset, "size"),
            "strict": settings.strict,
        },
        check=mailbox.check,
        say=log.info,
    )
    if packed.synthetic:
        logs.say_synthetic()
    if rank.local == 0:
        packed.verify()
    return packed


def following(folder: str, history: History) -> Following | None:
    """Who writes TensorBoard's files, if they are asked for. Raises `UserError` if the folder can't be written to."""
    if not folder:
        return None
    from console.tensorboard import Following

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--tensorboard {folder}: {e.strerror}") from e
    return Following(Path(folder), history)


def find_cloud(choice: str, watch: Watch) -> Instance | None:
    """The machine that this is; its cloud's notices are watched for from then on."""
    from watchers import cloud  # in a thread beside torch's import, which takes longer

    try:
        return cloud.find_and_watch(choice, watch)
    except ValueError as e:
        raise UserError(str(e), ExitCode.USAGE) from e
