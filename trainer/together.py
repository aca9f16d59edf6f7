"""Several processes on one run, over torch.distributed: gloo between processors, NCCL between GPUs.

What they exchange at each step is added up here, not by DistributedDataParallel, for the sake of exact resume. DDP
lays its buckets out anew after its first step, in the order in which gradients came; a collective adds up each place
in an order that depends on the layout. So with three or more processes a resumed run's first step would differ in its
last bits from the uninterrupted one's. And its wrapper wants every forward pass to go through it, of which jobs know
nothing. Here every process gets one piece of all gradients from each other, adds them up in the order of the processes,
and gives the sum to all: as much traffic as a ring's, the same bits with every backend; and, where each process has one
micro-batch of a step, the bits of one process that computed these in turn.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from storage.errors import StoreError, one_line
from trainer.early import Early
from trainer.exits import ExitCode, UserError
from trainer.ranks import Rank
from trainer.settings import Json, difference
from watchers import Mailbox, Notice, Stopped
from watchers.signals import OTHER_GONE

log = logging.getLogger("baton")

# Within a step all do the same work. Where one waits longer, the other's machine is gone without a word.
STEP_S = 300.0
START_S = 1800.0  # for all to be started: machines of a cloud come one by one
PARTING_S = 5.0
NOTICES_S = 60.0  # for one that is slow to tell its notices: taken for gone, it costs a GPU's state
POLL_S = 0.02
GOES_ON, SAVES, STOPS = 0, 1, 2


class Ended(Exception):
    """Process 0 has said how the run's part ends here."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with exit code {code}")
        self.code = code


class Keys(Protocol):
    """What is used of torch.distributed.Store: small values by key, on the machine of process 0."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Together:
    """This process among those of a run; see `trainer.group.Group`."""

    device = torch.device("cpu")  # what this process computes with

    def __init__(self, rank: Rank, keys: Keys, mailbox: Mailbox) -> None:
        self.number, self.count = rank.number, rank.count
        self._keys = keys
        self._mailbox = mailbox
        self._layouts: dict[str, list[tuple[str, list[int]]]] = {}
        self._buffers: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # all gradients, and the pieces of one sum
        self.has_lost = False  # one of the others is gone

    @classmethod
    def join(cls, rank: Rank, mailbox: Mailbox, *, gpus: bool) -> Together:
        """Meet the others, who all have GPUs or none. Raises `Stopped` when a notice comes first, `UserError` if they
        don't come."""

        def meet() -> Keys:
            # the launcher's own store serves its processes; a restart by torchrun uses it again
            keys, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=START_S)))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            keys = PrefixStore(f"baton/{attempt}", keys)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=keys,
                rank=rank.number,
                world_size=rank.count,
                timeout=timedelta(seconds=STEP_S),
            )
            return keys

        try:
            return cls(rank, Early(meet, "join").result(mailbox), mailbox)
        except RuntimeError as e:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            log.debug("joining failed: %s", e)
            raise UserError(
                f"process {rank.number} of {rank.count} could not meet the others at {where}", ExitCode.NOT_DURABLE
            ) from e

    # -- words: small JSON values, whenever they come ----------------------------------------------------------

    def say(self, key: str, word: Any) -> None:
        self._keys.set(key, json.dumps(word))

    def hear(self, key: str, patience_s: float, *, to_the_end: bool = False) -> Any:
        """Wait for a word. Raises `Ended` if process 0 has ended, `Stopped` by a notice or if nothing comes.

        `to_the_end`: don't heed notices, which were heeded before, but the deadline that they gave.
        """
        give_up = time.monotonic() + patience_s
        while True:
            with self._others():
                if self._keys.check([key]):
                    return json.loads(self._keys.get(key))
                if self.number and key != "end" and self._keys.check(["end"]):
                    raise Ended(json.loads(self._keys.get("end")))
            if not to_the_end:
                self._mailbox.check()
            deadline = self._mailbox.deadline
            if time.monotonic() > give_up or (deadline is not None and time.time() > deadline):
                self._lost(f"no {key} within {patience_s:.0f} s")
            time.sleep(POLL_S)

    def say_ready(self, computes: Mapping[str, Json], machine: Mapping[str, Json] | None) -> None:
        """Tell process 0 that this one is ready to train.

        `computes`: what must be alike in all of them. `machine`: from the first process of each.
        """
        self.say(f"ready/{self.number}", {"computes": computes, "machine": machine})

    def say_why_not(self, ending: Exception, code: int) -> None:
        """Tell process 0, which waits for all, what keeps this one from it. Raises `Stopped` if that is gone."""
        word: dict[str, Json]
        match ending:
            case Stopped():
                word = {"notice": _words_of(ending.notice)}
            case UserError() | StoreError():
                word = {"error": str(ending), "code": code}
            case _:
                word = {"error": f"{type(ending).__name__}: {one_line(ending)}", "code": code}
        with self._others():
            self.say(f"ready/{self.number}", word)

    def wait_for_others(self, computes: Mapping[str, Json]) -> list[Json]:
        """Until all are ready; their machines. What keeps any from it is raised: `UserError` or `Stopped`."""
        machines: list[Json] = []
        for number in range(1, self.count):
            match self.hear(f"ready/{number}", START_S):
                case {"error": error, "code": code}:
                    raise UserError(f"process {number} of {self.count}: {error}", ExitCode(code))
                case {"notice": notice}:
                    self._mailbox.post(Notice(action="stop", **notice))
                    self._mailbox.check()
                case {"computes": theirs, "machine": machine}:
                    if odd := difference(theirs, computes):
                        told = ", ".join(f"{name} {its}, not {own}" for name, (its, own) in odd.items())
                        raise UserError(
                            f"process {number} of {self.count} computes otherwise than process 0 ({told}): start all "
                            "with the same image, options and variables"
                        )
                    if machine is not None:
                        machines.append(machine)
        return machines

    def part(self, code: int) -> None:
        """Process 0 tells the others how it ends, and lets them hear it before it goes."""
        with suppress(Stopped):
            with self._others():
                self.say("end", int(code))
            for number in range(1, 1 if self.has_lost else self.count):
                self.hear(f"bye/{number}", PARTING_S, to_the_end=True)

    def last_word(self) -> Ended:
        """How process 0 ended; it may take as long as a save does."""
        ended = Ended(self.hear("end", math.inf, to_the_end=True))
        self.say_bye()
        return ended

    def say_bye(self) -> None:
        """Tell process 0 that its end was heard; it waits for that."""
        with suppress(Stopped), self._others():
            self.say(f"bye/{self.number}", {})

    # -- what the loop asks ------------------------------------------------------------------------------------

    def check(self) -> None:
        stop = self._mailbox.stop is not None
        flag = STOPS if stop else SAVES if self.number and self._mailbox.take_save() else GOES_ON
        agreed = self._largest(torch.tensor([flag])).item()
        if agreed == STOPS:
            self._tell_notices()
            self._mailbox.check()
        elif agreed == SAVES and self.number == 0:
            now = time.time()
            self._mailbox.post(Notice("process", "save", "told to save by another process", f"save:{now}", now))

    def add_up(self, model: nn.Module, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        trained = [p for p in model.parameters() if p.requires_grad]
        # a weight that no micro-batch used has no gradient in one process either, and no optimizer moves it
        used = self._largest(torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8)).tolist()
        by_type: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in (p for p, is_used in zip(trained, used, strict=True) if is_used):
            by_type.setdefault(parameter.dtype, []).append(parameter)
        with torch.no_grad():
            for parameters in by_type.values():
                self._add_up_gradients(parameters)
        total: dict[str, Tensor] = {}
        for part in self.collect("training", sums, self.count):
            for name, value in part.items():
                total[name] = total[name] + value if name in total else value
        return total

    def _add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        like, length = parameters[0], sum(p.numel() for p in parameters)
        piece = -(-length // self.count)
        flat, pieces = self._buffers.get(like.dtype, (None, None))
        if flat is None or pieces is None or len(flat) != piece * self.count:  # new memory in each step costs its time
            flat = torch.zeros(piece * self.count, dtype=like.dtype, device=like.device)
            pieces = torch.empty_like(flat)
            self._buffers[like.dtype] = flat, pieces
        places = torch.split(flat[:length], [p.numel() for p in parameters])
        for parameter, place in zip(parameters, places, strict=True):
            if parameter.grad is None:
                place.zero_()
            else:
                place.view(parameter.shape).copy_(parameter.grad)
        with self._others():
            dist.all_to_all_single(pieces, flat)
        total, *others = pieces.view(self.count, piece)
        for other in others:
            total += other
        with self._others():
            dist.all_gather_into_tensor(flat, total)
        for parameter, place in zip(parameters, places, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(place.view(parameter.shape))

    def share_buffers(self, model: nn.Module) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        with torch.no_grad():
            for buffers in by_type.values():
                self._share(buffers)

    def _share(self, tensors: Sequence[Tensor]) -> None:
        """Give every process these tensors of process 0; all of one type."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        bits = flat.view(torch.uint8)  # not every backend knows every type
        with self._others():
            dist.broadcast(bits, 0)
        if self.number:
            for tensor, place in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
                tensor.copy_(place.view(tensor.shape))

    def share_state(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of process 0."""
        with torch.no_grad():
            for tensor in model.state_dict().values():
                self._share([tensor])

    def share_bytes(self, data: bytes | None, size: int) -> bytes:
        """Give every process `size` bytes of process 0."""
        given = bytearray(data) if data is not None else bytearray(size)
        if size:
            with self._others():
                dist.broadcast(torch.frombuffer(given, dtype=torch.uint8), 0)
        return bytes(given)

    def collect(self, kind: str, sums: Mapping[str, Tensor], parts: int) -> Sequence[Mapping[str, Tensor]]:
        """As float64, which holds every float32 and every count."""
        layout = self._layout(kind, sums)
        lengths = [math.prod(shape) for _, shape in layout]
        mine = torch.zeros(sum(lengths), dtype=torch.float64, device=self.device)
        if sums:
            mine = torch.cat([sums[name].double().reshape(-1) for name, _ in layout])
        rows = torch.empty(self.count * len(mine), dtype=torch.float64, device=self.device)
        with self._others():
            dist.all_gather_into_tensor(rows, mine)
        return [
            {name: place.view(shape) for (name, shape), place in zip(layout, torch.split(row, lengths), strict=True)}
            for row in rows.view(self.count, -1)[:parts]
        ]

    def _layout(self, kind: str, sums: Mapping[str, Tensor]) -> list[tuple[str, list[int]]]:
        """Names and shapes of what process 0 has, for those who have nothing this time; said once."""
        own = [(name, list(value.shape)) for name, value in sums.items()]
        known = self._layouts.get(kind)
        if known is None and self.number == 0:
            self.say(f"layout/{kind}", [[name, list(shape)] for name, shape in own])
            known = own
        elif known is None:
            # a notice is for all to heed together: who went now would leave process 0 in its exchange
            known = [(name, shape) for name, shape in self.hear(f"layout/{kind}", STEP_S, to_the_end=True)]
        self._layouts[kind] = known
        if own and sorted(own) != sorted(known):
            raise ValueError(f"with several processes the sums of {kind} must have the same names and shapes each time")
        return known

    def _largest(self, values: Tensor) -> Tensor:
        """The largest that any process has, in each place; on the host."""
        if len(values):
            with self._others():
                dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    # -- the others --------------------------------------------------------------------------------------------

    def _tell_notices(self) -> None:
        """All come to know each other's reasons to stop: the exit code and the time that is left follow from them.

        Of a time that is known half is left for the save.
        """
        mine = [_words_of(notice) for notice in list(self._mailbox.notices) if notice.action == "stop"]
        with self._others():
            self.say(f"notices/{self.number}", mine)
        for number in (n for n in range(self.count) if n != self.number):
            deadline = self._mailbox.deadline
            patience_s = NOTICES_S if deadline is None else min(NOTICES_S, (deadline - time.time()) / 2)
            for word in self.hear(f"notices/{number}", patience_s, to_the_end=True):
                self._mailbox.post(Notice(action="stop", **word))

    @contextmanager
    def _others(self) -> Iterator[None]:
        """What depends on the others, and fails if one of them is gone."""
        try:
            yield
        except RuntimeError as e:
            self._lost(str(e))

    def _lost(self, why: str) -> NoReturn:
        log.debug("another process is gone: %s", why)
        self.has_lost = True
        notice = Notice("process", "stop", OTHER_GONE, "process", time.time())
        self._mailbox.post(notice)
        raise Stopped(notice)


def _words_of(notice: Notice) -> dict[str, Json]:
    """A notice for other processes; only the one that got it can acknowledge it."""
    names = ("source", "detail", "id", "seen", "deadline")
    return {name: getattr(notice, name) for name in names}
