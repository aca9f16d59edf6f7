"""Recognise what a source is, by its content rather than its name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from trainer.data import archives, folders, synthetic
from trainer.data.dataset import Dataset, Splits, shown
from trainer.data.packed import FILE_NAME, Origin, open_packed
from trainer.data.paths import expanded, reading
from trainer.data.pulse import Pulse
from trainer.data.tarstream import is_tar
from trainer.exits import UserError

SYNTHETIC = "synthetic"
SCHEMES = ("gs", "s3", "az")  # of stores; a folder's is a path here
CHUNK = 4 << 20  # bytes hashed between two looks at `check`
_MAY_HOLD_A_SECRET = re.compile("[?@]")  # an address with a token or a password in it


@dataclass(frozen=True, slots=True)
class Source:
    """A source found good as far as can be told without reading it whole."""

    origin: Origin
    read: Callable[[Pulse], Splits]  # raises `UserError`
    synthetic: bool = False


def is_address(source: str) -> bool:
    """Whether it has to be downloaded."""
    return urlsplit_scheme(source) in ("http", "https")


def is_stored(source: str) -> bool:
    """Whether it is in a cloud's store."""
    return urlsplit_scheme(source) in SCHEMES


def urlsplit_scheme(source: str) -> str:
    """The scheme of a URL, "" for a path."""
    scheme, separator, _ = source.partition("://")
    return scheme.lower() if separator and scheme.isascii() and scheme.isalnum() else ""


def local_path(source: str, accepted: str) -> Path:
    """The path that a source names: as it is, or in a file:// URL. Raises `UserError` for another scheme.

    `accepted`: the end of the message.
    """
    scheme = urlsplit_scheme(source)
    if scheme == "file":
        host, _, path = source.partition("://")[2].partition("/")
        if host not in ("", "localhost"):
            raise UserError(f"{shown(source)}: names another machine; a file here is file:///PATH")
        path = "/" + unquote(path)
    elif scheme:
        what = f"{scheme}://..." if _MAY_HOLD_A_SECRET.search(source) else shown(source)
        raise UserError(f"{what}: no source that can be read here; {accepted}")
    else:
        path = source
    if "\0" in path or not path:
        raise UserError(f"{shown(source) or 'the empty name'}: no source that can be read here; {accepted}")
    return Path(path) if scheme else expanded(path)


def accepted(dataset: Dataset) -> str:
    """What may be given as a source; the end of a message."""
    return (
        f"accepted are {dataset.python.name} and {dataset.binary.name} as published, a folder of pictures "
        "(train/CLASS/*.png and test/CLASS/*.png) or a tar of one (.tar, .gz, .bz2, .xz), an http:// or https:// "
        f"address of such a file, and the word {SYNTHETIC}"
    )


def recognise(dataset: Dataset, source: str, pulse: Pulse, name: str = "") -> Source:
    """What the local `source` is; `name`, if given, is told instead of the file's own. Raises `UserError`."""
    if source == SYNTHETIC:
        return Source(Origin(SYNTHETIC, SYNTHETIC, "1"), partial(synthetic.generate, dataset), synthetic=True)
    path = local_path(source, accepted(dataset))
    with reading(path):
        if path.is_dir():
            return _folder(dataset, path, pulse)
        if not path.exists():
            raise UserError(f"{shown(source)}: no such file or folder; {accepted(dataset)}")
        if path.is_file():
            return _file(dataset, path, name or path.resolve().name, pulse)
    raise UserError(f"{shown(source)}: neither a file nor a folder; {accepted(dataset)}")


def _folder(dataset: Dataset, path: Path, pulse: Pulse) -> Source:
    if (path / FILE_NAME).exists():
        raise UserError(f"{shown(path)}: is packed already; give it to --data as it is")
    inside = [path, *sorted(p for p in path.iterdir() if p.is_dir())[:100]]
    first = dataset.train_files[0]
    for folder in inside:
        if (folder / f"{first}.bin").is_file():
            files = [folder / f"{n}.bin" for _, names, _ in dataset.splits() for n in names]
            origin = Origin("binary folder", path.resolve().name, _fingerprint(files, pulse))
            return Source(origin, partial(archives.read_binary_folder, dataset, folder))
        if (folder / first).is_file():
            raise UserError(
                f"{shown(folder)}: holds pickles, which can't be checked once they are extracted; "
                f"give the archive itself, {dataset.python.name}"
            )
    tree = folders.scan(path, pulse)
    if tree is None:
        raise UserError(f"{shown(path)}: a folder without train and test in it; {accepted(dataset)}")
    return Source(Origin("image folder", path.resolve().name, tree.mark), partial(folders.read_tree, dataset, tree))


def _file(dataset: Dataset, path: Path, name: str, pulse: Pulse) -> Source:
    if path.stat().st_size == 0:
        raise UserError(f"{shown(path)}: is empty; {accepted(dataset)}")
    if not is_tar(path):
        if _is_packed(path):
            raise UserError(f"{shown(path)}: is packed already; give it to --data as it is")
        raise UserError(f"{shown(path)}: not a kind of file that can be read here; {accepted(dataset)}")
    mark = _fingerprint([path], pulse)
    md5 = mark.removeprefix("md5:")
    if md5 == dataset.python.md5:
        return Source(Origin("python archive", name, mark), partial(archives.read_python, dataset, path))
    if md5 == dataset.binary.md5:
        return Source(Origin("binary archive", name, mark), partial(archives.read_binary, dataset, path))
    return Source(Origin("image tar", name, mark), partial(folders.read_tar, dataset, path, md5))


def _is_packed(path: Path) -> bool:
    try:
        open_packed(path)
    except UserError:
        return False
    return True


def _fingerprint(paths: list[Path], pulse: Pulse) -> str:
    """The MD5 of the files' bytes: what the official archives are published with."""
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        with reading(path), path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                pulse.beat(f"checking {shown(path.name)}")
    return f"md5:{digest.hexdigest()}"
