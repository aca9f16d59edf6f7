"""What can go wrong with a store, as one tree.

    StoreError
    |-- NotFound (FileNotFoundError)          the object is proven absent
    |-- AlreadyExists (FileExistsError)       create-if-absent found one there
    |-- PermissionDenied (PermissionError)    a right is missing; never reported as NotFound
    |-- InvalidKey (ValueError)               the key is none that a store may hold
    |-- InvalidURL (ValueError)               the store's address can't be understood
    |-- Unsupported                           the store can't keep the contract
    |-- NotSetUp                              no such bucket, wrong region, no credentials or dead ones, a wrong clock
    `-- Transient                             worth trying again later
        |-- NoSpace (OSError)
        |-- Damaged (OSError)                 what came is not what the store has, by its own checksum
        `-- Unavailable (ConnectionError)

Each also is the builtin exception that fits, so callers may catch either.
"""

import re


class StoreError(Exception):
    """Root of the tree; its text is one line that a user can act on."""


class NotFound(StoreError, FileNotFoundError):
    pass


class AlreadyExists(StoreError, FileExistsError):
    pass


class PermissionDenied(StoreError, PermissionError):
    pass


class InvalidKey(StoreError, ValueError):
    pass


class InvalidURL(StoreError, ValueError):
    pass


class Unsupported(StoreError):
    pass


class NotSetUp(StoreError):
    """A person must act; the text says how, in the cloud's own words."""


class Transient(StoreError):
    """The same call may succeed later."""


class NoSpace(Transient, OSError):
    pass


class Damaged(Transient, OSError):
    pass


class Unavailable(Transient, ConnectionError):
    pass


# What reading an answer raises that is not what it should be; botocore's RuntimeError is for a time out of all bounds.
NONSENSE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def unwrapped(text: str) -> str:
    """What urllib3 says of a failed connection, without the objects that it and requests wrap it in."""
    text = text.rpartition("Caused by ")[2]
    return re.sub(r"""^\w+\(["']\w+\(host='[^']*', port=\d+\): (.*?)["']\)+$""", r"\1", text)


def one_line(text: object) -> str:
    """Another's words, for an error's text."""
    return " ".join(str(text).split())[:400]
