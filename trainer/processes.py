"""`--nproc`: this machine's processes for a run, started and watched by torch's elastic agent.

The agent ends them all when one dies. Then they are started anew, a new attempt from the newest checkpoint. The agent's
own restarts aren't used: it would also start again what ended on purpose, and says nothing that a user understands.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from trainer.exits import ExitCode
from trainer.ranks import ROLE
from watchers import Mailbox
from watchers.signals import LOST

log = logging.getLogger("baton")

RESTARTS = 3
LOOK_S = 0.1
TOLD = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
HELD = (*TOLD, LOST)


class Told:
    """What this process is told by signals, passed on to its processes, each once.

    They are in sessions of their own: a terminal's Ctrl-C comes here alone.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.pids: list[int] = []
        self._sent: set[tuple[int, int]] = set()
        for number in TOLD:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._hear)
        threading.Thread(target=self._pass_on, name="signals", daemon=True).start()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)

    def _pass_on(self) -> None:
        while True:
            for pid in list(self.pids):
                for place, number in enumerate(list(self.signals)):
                    if (pid, place) not in self._sent:
                        self._sent.add((pid, place))
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, number)
            time.sleep(LOOK_S / 2)


class Agent(LocalElasticAgent):
    """Tells who its processes are, and starts them so that no signal ends them before they can take it."""

    def __init__(self, spec: WorkerSpec, told: Told, log_dir: str) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir))
        self._told = told
        self.by_themselves: set[int] = set()  # which had ended before the others were closed, if they were

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)  # a new process inherits it; watchers.signals unblocks
        try:
            pids: dict[int, Any] = super()._start_workers(worker_group)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        self._told.pids = list(pids.values())
        context = self._pcontext
        assert isinstance(context, SubprocessContext)
        end = context.close  # called where one has died, and its SIGTERM would say that the machine goes

        def close(death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
            ended = {n for n, process in context.subprocess_handlers.items() if process.proc.poll() is not None}
            self.by_themselves = self.by_themselves or ended
            end(LOST, timeout)

        context.close = close  # type: ignore[method-assign]
        return pids


def train(count: int, arguments: Sequence[str], mailbox: Mailbox) -> int:
    """Run this program and its arguments in `count` processes until they end; returns the exit code.

    Raises `Stopped` if a notice came to `mailbox` before the first of them was started.
    """
    told = Told()
    mailbox.check()
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"  # `Told` does; the agent would kill after 30 s
    quiet = logging.getLogger("torch.distributed")  # it would speak of its own matters, with a traceback
    quiet.handlers[:] = [logging.NullHandler()]
    quiet.propagate = False
    for restart in range(RESTARTS + 1):
        codes, by_themselves = _run(count, arguments, told)
        # one that had no time to end when another had ended is killed too, and says nothing
        killed = [number for number, code in codes.items() if code < 0 and number in by_themselves]
        if not killed or told.signals or ExitCode.DEFECT in codes.values():
            break
        first = min(killed)
        name = signal.Signals(-codes[first]).name
        if restart == RESTARTS:
            log.error("process %d of %d was killed again (%s), after %d restarts", first, count, name, restart)
            return ExitCode.NOT_DURABLE
        log.warning(
            "process %d of %d was killed (%s): starting again from the newest checkpoint (%d of %d times)",
            *(first, count, name, restart + 1, RESTARTS),
        )
    return code_of(codes)


def _run(count: int, arguments: Sequence[str], told: Told) -> tuple[dict[int, int], set[int]]:
    """Exit codes of those that failed, below 0 where a signal ended it; and who ended before the others were closed."""
    address = "127.0.0.1"
    place = rendezvous.get_rendezvous_handler(
        RendezvousParameters("c10d", f"{address}:0", uuid.uuid4().hex, 1, 1, local_addr=address)
    )
    spec = WorkerSpec(
        role=ROLE,
        local_world_size=count,
        entrypoint=sys.executable,
        args=tuple(arguments),
        rdzv_handler=place,
        max_restarts=0,
        monitor_interval=LOOK_S,
        local_addr=address,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:  # the agent makes one, and leaves it
            agent = Agent(spec, told, folder)
            result: RunResult = agent.run()
            codes = {number: failure.exitcode for number, failure in result.failures.items()}
            return codes, agent.by_themselves
    finally:
        told.pids = []
        place.shutdown()


def code_of(codes: dict[int, int]) -> int:
    """What all end with: a defect's code, or that of a GPU with too little memory, whosever it is; else that of process
    0, which tells the others."""
    for code in (ExitCode.DEFECT, ExitCode.SETUP):
        if code in codes.values():
            return code
    said = [code for code in (codes.get(0), *codes.values()) if code is not None and code >= 0]
    return next(iter(said), ExitCode.DONE if not codes else ExitCode.NOT_DURABLE)
