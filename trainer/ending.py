"""How a container's part in a run ends: finished, stopped or failed; what is said, put on record, and exited with."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage.errors import NoSpace, StoreError, Transient
from trainer.exits import ExitCode, UserError
from trainer.gpu import Failed
from trainer.history import History
from trainer.settings import Json, Settings
from trainer.tally import Tally
from watchers import Mailbox, Notice, Stopped
from watchers.signals import AT_ONCE

if TYPE_CHECKING:
    from trainer.attempt import Attempt
    from trainer.run import Request

log = logging.getLogger("baton")


def stop(request: Request, settings: Settings, attempt: Attempt) -> int:
    """Save what a notice stopped, and say what became of it. Returns the exit code."""
    mailbox = request.mailbox
    assert mailbox.stop is not None
    attempt.stopped_at = time.time()
    # what a watcher saw with a deadline was told of when it came
    known = mailbox.stop.deadline is not None and not mailbox.stop.source.startswith(("SIG", "process"))
    known |= mailbox.stop.source == "superseded"  # of which the last line tells
    log.info(
        "stopping at step %d%s",
        attempt.position.step,
        "" if known else f": {mailbox.stop.detail}{AT_ONCE.get(mailbox.stop.source, '')}",
        extra={"fields": {"step": attempt.position.step, "notice": mailbox.stop.source}},
    )
    saved = attempt.save_last(final=False)
    if (notice := request.halt.check()) is not None:  # an operator's halt outranks the SIGTERM that came with it
        mailbox.post(notice)
    step, kept = attempt.position.step, attempt.saver.durable.step if attempt.saver.durable else 0
    if attempt.superseded is not None:  # whatever else came: the run is no longer this copy's to halt or to save
        code, outcome = settings.superseded_exit_code, "superseded"
        log.info("superseded: %s; nothing more is saved here", attempt.superseded)
    elif saved:
        code, outcome = exit_code_for(Stopped(mailbox.stop), settings), "stopped"
        spare = f", {mailbox.deadline - time.time():.1f} s before the deadline" if mailbox.deadline else ""
        log.info(
            "last checkpoint durable at step %d, 0 steps lost%s",
            kept,
            spare,
            extra={"fields": {"durable_step": kept, "lost_steps": 0}},
        )
    else:
        code, outcome = ExitCode.NOT_DURABLE, "not durable"
        log.error(
            "the last state could not be saved (%s): %d step%s since step %d %s lost",
            attempt.lost_state or attempt.saver.error or "no time left",
            step - kept,
            "" if step - kept == 1 else "s",
            kept,
            "is" if step - kept == 1 else "are",
            extra={"fields": {"durable_step": kept, "lost_steps": step - kept}},
        )
    if outcome != "superseded":
        log.info(
            "to go on: %s%sstart it again, %s%s",
            "" if saved else mend(attempt.saver.fault),
            "remove that file, then " if notice is not None else "",
            "here" if attempt.history.store.url.startswith("file:") else "here or anywhere",
            # of several processes one that is lost decides what all end with, and whether they do
            "" if mailbox.stop.source == "process" else f" (exit code {code})",
            extra={"fields": {"exit": int(code)}},
        )
    attempt.end(code, outcome)
    if outcome == "stopped":
        acknowledge(mailbox)
    return code


def fail(settings: Settings, attempt: Attempt, error: Exception, *, at_boundary: bool) -> bool:
    """An error ends this part: save what can be saved, and say what became of it.

    `at_boundary`: the state is one that can be saved. Returns False if nobody need see the error, for a newer copy has
    the run by now.
    """
    if not at_boundary:
        attempt.lost_state = str(error)
    try:
        attempt.save_last(final=False)
    except Exception as e:  # it can't be read after all, or no save of it can be made
        attempt.lost_state = str(e)
        attempt.save_last(final=False)
    code, outcome = ExitCode.DEFECT, "defect"
    if isinstance(error, UserError):
        code, outcome = error.code, "a GPU failed" if isinstance(error, Failed) else "not set up"
    if attempt.superseded is not None:
        log.info("superseded: %s; nothing more is saved here", attempt.superseded)
        if code != ExitCode.DEFECT:
            attempt.end(settings.superseded_exit_code, "superseded")
            return False
    elif attempt.position.step:
        step, kept = attempt.position.step, attempt.saver.durable.step if attempt.saver.durable else 0
        log.info(
            "last checkpoint durable at step %d, %d step%s lost (exit code %d)",
            *(kept, step - kept, "" if step - kept == 1 else "s", code),
            extra={"fields": {"step": step, "durable_step": kept, "lost_steps": step - kept}},
        )
    attempt.end(code, outcome)
    return True


def acknowledge(mailbox: Mailbox) -> None:
    """Tell the cloud that the machine may go, now that all is durable and on record: it may go at this moment."""
    for notice in mailbox.notices:
        if notice.acknowledge is None or notice.id in mailbox.withdrawn:
            continue
        try:
            notice.acknowledge()
            log.info("told %s that this machine may go", notice.source)
        except Exception as e:
            log.warning("%s could not be told that this machine may go, and will wait: %s", notice.source, e)


def exit_code_for(ending: Stopped | UserError | StoreError, settings: Settings) -> int:
    """The exit code of a container that ended so, with nothing lost."""
    match ending:
        case UserError():
            return ending.code
        case StoreError():
            return ExitCode.NOT_DURABLE if isinstance(ending, Transient) else ExitCode.SETUP
        case Stopped(notice=notice):
            codes = {"halt": ExitCode.DONE, "SIGINT": ExitCode.INTERRUPTED}
            return codes.get(notice.source, settings.preempted_exit_code)


def finish(request: Request, settings: Settings, attempt: Attempt, classes: Sequence[str]) -> int:
    """The run is at its end: make that durable, and write the result. `classes`: names of what the data tells apart."""
    if not attempt.save_last(final=True):
        if attempt.superseded is not None:
            return stop(request, settings, attempt)
        why = f"the last state could not be saved: {attempt.saver.error or 'no time left'}"
        return _end_without(attempt, why, ExitCode.NOT_DURABLE, attempt.saver.fault)
    try:
        attempt.write_result(classes)
    except StoreError as e:
        return _end_without(attempt, f"its result could not be written: {e}", exit_code_for(e, settings), type(e))
    if attempt.superseded is not None:
        return stop(request, settings, attempt)
    attempt.end(ExitCode.DONE, "finished")
    log.info(
        "finished: %d steps, %s; result in %s/%s/result.json",
        attempt.position.step,
        told(attempt.metrics),
        request.history.store.url,
        request.history.run,
        extra={"fields": {"step": attempt.position.step, **attempt.metrics}},
    )
    for line in table(attempt.metrics.get("confusion"), classes):
        log.info("%s", line)
    return ExitCode.DONE


def _end_without(attempt: Attempt, what: str, code: int, fault: type[StoreError] | None) -> int:
    log.error("trained to the end, but %s; %sstart it again, and it goes on from what is saved", what, mend(fault))
    attempt.end(code, "not durable")
    return code


def mend(fault: type[StoreError] | None) -> str:
    """What has to be done about a store before a start helps."""
    if fault is None or (issubclass(fault, Transient) and not issubclass(fault, NoSpace)):
        return ""
    return "make room in the store, then " if issubclass(fault, NoSpace) else "mend that, then "


def record_end(
    history: History, number: int, exit_code: int, outcome: str, mailbox: Mailbox, attempt: Attempt | None = None
) -> None:
    """How attempt `number` ended: <run>/attempts/000003.end.json. `attempt`: None if it never came to train.

    May raise `StoreError`.
    """
    last = attempt.saver.durable if attempt else None
    history.write_record(
        {
            "attempt": number,
            "exit": exit_code,
            "outcome": outcome,
            "first_step": attempt.first_step if attempt else None,
            "step": attempt.position.step if attempt else None,
            "durable_step": last.step if last else None,
            "notices": [_record(notice, mailbox, attempt) for notice in mailbox.notices],
            "tally": attempt.tally.with_saves(attempt.position.step) if attempt else Tally().now(0),
            "time": time.time(),
        },
        "attempts",
        f"{number:06d}.end.json",
    )


def _record(notice: Notice, mailbox: Mailbox, attempt: Attempt | None) -> dict[str, Json]:
    """A notice and what followed; times in seconds since 1970.

    `durable`: when a state that was taken after the notice came was in the store. The exit is the record's own time.
    """
    answer = attempt.answers.get(notice.id) if attempt else None
    return {
        "source": notice.source,
        "action": notice.action,
        "detail": notice.detail,
        "seen": notice.seen,
        "deadline": notice.deadline,
        "withdrawn": mailbox.withdrawn.get(notice.id),
        "stopped": attempt.stopped_at if attempt and notice.action == "stop" else None,
        "durable": answer.at if answer else None,
        "durable_step": answer.step if answer else None,
    }


def told(metrics: Json) -> str:
    """Metrics for people: names and values. One that is no number any more is null on record."""
    pairs = metrics.items() if isinstance(metrics, dict) else ()
    figures = {n: "not a number" if v is None else f"{v:.4f}" for n, v in pairs if v is None or isinstance(v, float)}
    return ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in figures.items())


def table(matrix: Json, classes: Sequence[str]) -> list[str]:
    """A confusion matrix for people, as lines; none where there is no such matrix, or it is too wide to read."""
    if not isinstance(matrix, list) or not 0 < len(matrix) == len(classes) <= 12:
        return []
    rows = [list(map(str, row)) for row in matrix if isinstance(row, list)]
    names = [name if len(name) <= 16 else f"{name[:13]}..." for name in classes]
    corner = "truth | taken for"
    left = max(map(len, (corner, *names)))
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(names)]
    head = "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    lines = [f"{corner:<{left}}  {head}"]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<{left}}  " + "  ".join(n.rjust(width) for n, width in zip(row, widths, strict=True)))
    return lines
