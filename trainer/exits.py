"""Exit codes, and the error that a user's mistake ends in. The table is in README.md, "Exit codes"."""

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


class UserError(Exception):
    """Something that a person must mend: one line which says what is wrong, where, and what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.SETUP) -> None:
        super().__init__(message)
        self.code = code
