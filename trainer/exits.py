"""Exit codes, and the error that a user's mistake ends in. docs/reference.md has them as a table."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0  # finished, halted by its operator, or superseded: nothing left for this container
    DEFECT = 1
    USAGE = 64  # the command line can't be understood (EX_USAGE)
    NOT_DURABLE = 74  # the last save is not in the store; the one before it is (EX_IOERR)
    PREEMPTED = 75  # told to go by the machine; start it again anywhere (EX_TEMPFAIL)
    SETUP = 78  # a person must act before it can run (EX_CONFIG)
    INTERRUPTED = 130  # Ctrl-C
    UNREAD = 141  # as of a program that SIGPIPE ends


# code -> what it means, what whoever restarts containers should do; for people
MEANINGS = {
    ExitCode.DONE: (
        "nothing left to do here: finished, halted by its operator, or superseded by a newer copy; the last line says "
        "which",
        "leave it",
    ),
    ExitCode.PREEMPTED: (
        "told to go by the machine (a cloud's notice, SIGTERM, a closed terminal, `preempt.txt`), last checkpoint "
        "durable",
        "start it again, anywhere",
    ),
    ExitCode.NOT_DURABLE: (
        "stopped, or the store or the data's address can't be reached, or the GPU is lost, and the last save is not "
        "durable; the one before it is; or another copy has begun the same run meanwhile",
        "start it again, and look",
    ),
    ExitCode.SETUP: (
        "settings, data, an address's name, permission or room are wrong, found before the first step; or a GPU has "
        "too little memory for one; or a job gives a loss, an evaluation, metrics, an effort or a result of a wrong "
        "kind",
        "not restart; a person must act",
    ),
    ExitCode.USAGE: ("the command line can't be understood", "not restart"),
    ExitCode.INTERRUPTED: (
        "Ctrl-C, last checkpoint durable; pressed twice, what was durable by then is kept, and no more",
        "leave it",
    ),
    ExitCode.UNREAD: ("whoever read what a command prints has gone; of no training", "leave it"),
    ExitCode.DEFECT: ("a defect in Baton or in the job; the last line says which, where that is known", "look"),
}


class UserError(Exception):
    """Something that a person must mend: one line which says what is wrong, where, and what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.SETUP) -> None:
        super().__init__(message)
        self.code = code


class OtherRun(UserError):
    """The store's run of this name is another than was meant. `synthetic`: it, whatever was to be trained on here."""

    def __init__(self, message: str, *, synthetic: bool, code: ExitCode = ExitCode.SETUP) -> None:
        super().__init__(message, code)
        self.synthetic = synthetic
