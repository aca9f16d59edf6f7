"""Where photographs come from: a folder, a tar, its address, a prefix in a store or a tar there."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from storage import Store
from storage.errors import NotFound
from storage.protocol import ObjectInfo
from trainer.data import folders
from trainer.data.dataset import shown
from trainer.data.download import fetch_unless_held, mark_of, name_of
from trainer.data.packed import Origin
from trainer.data.paths import reading
from trainer.data.photo import EXTENSIONS, FILE_LIMIT, too_long
from trainer.data.pictures import read_file
from trainer.data.pulse import Pulse
from trainer.data.remote import StoreFile, patient, read
from trainer.data.scratch import scratch
from trainer.data.sources import is_address, is_stored, local_path
from trainer.data.tarstream import is_tar, members
from trainer.exits import UserError

ACCEPTED = (
    "accepted are a folder of train/CLASS/*.jpg and val/CLASS/*.jpg, a tar of one (.tar, .gz, .bz2, .xz), an http:// "
    "or https:// address of such a tar, and gs://, s3:// or az:// of such a folder or tar"
)
TARS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
TOTAL_LIMIT = 1 << 40  # bytes in a tar; ImageNet has 0.16e12
STORE_WORKERS = 16  # requests under way: each waits far longer than it computes


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture of the source."""

    name: str  # for messages: its path in the source
    test: bool
    folder: str  # its class
    data: bytes | Callable[[], bytes]  # which raises `Broken` where it is too long to be one


@dataclass(frozen=True, slots=True)
class Photos:
    """A source found good as far as can be told without reading its pictures."""

    origin: Origin
    pictures: Callable[[], Iterator[Photo]]  # in an order that is the same each time
    count: int | None = None  # of files, where known
    workers: int = 0  # to read and decode with; as many as there are processors, if 0


@contextlib.contextmanager
def opened(source: str, folder: Path, pulse: Pulse, held: Origin | None) -> Iterator[Photos]:
    """What `source` is; a download lies in `folder` until the end. Raises `UserError` and `StoreError`.

    `held`: where what is packed already came from, if that would do; given back, without pictures, where an address
    has nothing else.
    """
    if is_address(source):
        name = name_of(source)
        pulse.say(f"fetching {shown(name)}")
        with scratch(folder) as file:
            came = fetch_unless_held(source, file, pulse, held)
            if came is None:
                assert held is not None  # else there was nothing to know it by
                yield Photos(held, lambda: iter(()))
                return
            origin = Origin("image tar", name, f"sha256:{came.sha256}", came.tag, mark_of(source))
            yield _tar(file.path, origin, pulse)
    elif is_stored(source):
        yield _stored(source, pulse)
    else:
        yield _local(local_path(source, ACCEPTED), pulse)


def _local(path: Path, pulse: Pulse) -> Photos:
    with reading(path):
        if path.is_dir():
            tree = folders.scan(path, pulse)
            if tree is None:
                raise UserError(f"{shown(path)}: a folder without train and val in it; {ACCEPTED}")
            if tree.empty:
                more = f" (nor are {len(tree.empty) - 1:,} more)" if len(tree.empty) > 1 else ""
                pulse.say(
                    f"{shown(path.name)}: train/{shown(tree.empty[0])} has no file in it, so it is no class{more}"
                )
            origin = Origin("image folder", path.resolve().name, tree.mark)
            return Photos(origin, partial(_of_tree, tree, pulse), len(tree.files))
        if not path.is_file():
            raise UserError(f"{shown(path)}: no such file or folder; {ACCEPTED}")
        status = path.stat()
    return _tar(path, Origin("image tar", path.resolve().name, folders.version(status)), pulse)


def _of_tree(tree: folders.Tree, pulse: Pulse) -> Iterator[Photo]:
    layout = folders.Layout(tree.root, (), EXTENSIONS)
    for name in tree.files:
        if (place := layout.place(tuple(name.split("/")))) is not None:
            yield Photo(name, *place, partial(read_file, tree.root / name, FILE_LIMIT))
    layout.tell_ignored(pulse)


def _tar(path: Path, origin: Origin, pulse: Pulse) -> Photos:
    if not is_tar(path):
        raise UserError(f"{shown(origin.name)}: no tar; {ACCEPTED}")
    return Photos(origin, partial(_of_tar, origin.name, lambda: path.open("rb"), pulse))


def _of_tar(name: str, opener: Callable[[], BinaryIO], pulse: Pulse) -> Iterator[Photo]:
    """`name`: by which people know it; a download lies here under another."""
    layout = folders.Layout(name, (), EXTENSIONS)
    some = members(Path(name), pulse.check, opener=opener, total_limit=TOTAL_LIMIT)
    for member, place in folders.placed(some, layout):
        yield Photo("/".join(member.parts), *place, _too_long if member.data is None else member.data)
    layout.tell_ignored(pulse)


def _too_long() -> bytes:
    raise too_long()


def _stored(url: str, pulse: Pulse) -> Photos:
    name = url.rstrip("/").rpartition("/")[2]
    if name.lower().endswith(TARS):
        store = patient(url.rstrip("/").rpartition("/")[0], pulse.check)
        try:
            info = store.stat(name)
        except NotFound as e:
            raise UserError(f"{shown(url)}: no such object; {ACCEPTED}") from e
        origin = Origin("image tar in a store", name, f"bytes:{info.size},newest:{info.modified}")
        opener: Any = partial(StoreFile, store, info, pulse.check)  # it has what is asked of a file here, not all
        return Photos(origin, partial(_of_tar, name, opener, pulse))
    store = patient(url.rstrip("/"), pulse.check)
    found: list[ObjectInfo] = []
    for info in store.list(""):
        found.append(info)
        pulse.beat(f"listing {shown(url)}: {len(found):,} objects")
    if not found:
        raise UserError(f"{shown(url)}: nothing is there; {ACCEPTED}")
    origin = Origin("image folder in a store", name, _mark(found))
    return Photos(origin, partial(_of_store, store, url, found, pulse), len(found), STORE_WORKERS)


def _mark(found: list[ObjectInfo]) -> str:
    """As a folder's: of each object by itself, for together they can be as many, as long and as new as before."""
    digest = hashlib.sha256()
    for info in found:
        digest.update(f"{info.key}\0{info.size}\0{info.modified}\n".encode())
    return f"files:{len(found)},sha256:{digest.hexdigest()}"


def _of_store(store: Store, url: str, found: list[ObjectInfo], pulse: Pulse) -> Iterator[Photo]:
    """In the order in which a folder's files are read, so that both are packed alike."""
    layout = folders.Layout(url, (), EXTENSIONS)
    for info in sorted(found, key=lambda info: info.key.split("/")):
        if (place := layout.place(tuple(info.key.split("/")))) is not None:
            yield Photo(info.key, *place, partial(read, store, info, 0, min(info.size, FILE_LIMIT + 1)))
    layout.tell_ignored(pulse)
