"""Image trees: `train/CLASS/PICTURE` and `test/CLASS/PICTURE` (or `val`), as a folder or as a tar of one."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.data.dataset import Dataset, Splits, shown
from trainer.data.pictures import EXTENSIONS, Picture, decode_all
from trainer.data.pulse import Pulse, told
from trainer.data.tarstream import Member, members
from trainer.exits import UserError

SPLITS = {"train": False, "test": True, "val": True}
WANTED = "wanted is train/CLASS/PICTURE and test/CLASS/PICTURE"


class Layout:
    """Tells each file's split and class by its path in the tree."""

    def __init__(
        self, source: object, classes: Collection[str], extensions: tuple[str, ...] = EXTENSIONS, name: str = ""
    ) -> None:
        """`classes`: of the data set `name`; if there are none, any folder is one."""
        self.source = shown(source)
        self._classes = classes
        self._extensions = extensions
        self._name = name
        self._top: tuple[str, ...] | None = None
        self._test_name: str | None = None
        self.ignored: list[str] = []

    def place(self, parts: tuple[str, ...]) -> tuple[bool, str] | None:
        """(in the test split?, class) of a picture; None for a file that is none. Raises `UserError`."""
        if hidden(parts):
            return None
        name = shown("/".join(parts))
        if not parts[-1].lower().endswith(self._extensions):
            self.ignored.append(name)
            return None
        top = parts[:1] if parts[0] not in SPLITS else ()
        rest = parts[len(top) :]
        if len(rest) < 3 or rest[0] not in SPLITS:
            raise UserError(f"{self.source}: {name} is in no class's folder; {WANTED}")
        if self._top not in (None, top):
            raise UserError(f"{self.source}: {name} is in a second top folder; {WANTED}")
        self._top = top
        split, folder = rest[:2]
        if SPLITS[split]:
            if self._test_name not in (None, split):
                raise UserError(f"{self.source}: has both test and val; remove one")
            self._test_name = split
        if self._classes and folder not in self._classes:
            near = difflib.get_close_matches(folder, self._classes, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(self._classes)}"
            raise UserError(f"{self.source}: {split}/{shown(folder)} is no class of {self._name}; {hint}")
        return SPLITS[split], folder

    def tell_ignored(self, pulse: Pulse) -> None:
        if self.ignored:
            more = f" and {len(self.ignored) - 1:,} more" if len(self.ignored) > 1 else ""
            pulse.say(f"ignored, as no picture by its name: {self.ignored[0]}{more}")


def hidden(parts: tuple[str, ...]) -> bool:
    """Whether file managers and notebooks keep this for themselves."""
    return any(p.startswith(".") or p == "__MACOSX" for p in parts)


def _layout(dataset: Dataset, source: Path) -> Layout:
    return Layout(source, dataset.classes, name=dataset.name)


def read_tar(dataset: Dataset, path: Path, md5: str, pulse: Pulse) -> Splits:
    """The pictures in a tar of an image tree, read once, its members in any order. Raises `UserError`."""
    layout = _layout(dataset, path)
    official = {n + end for _, names, _ in dataset.splits() for n in names for end in ("", ".bin")}

    def unofficial(some: Iterable[Member]) -> Iterator[Member]:
        for member in some:
            if member.parts[-1] in official:
                raise UserError(
                    f"{shown(path)}: looks like an official archive of {dataset.name}, but its MD5 {md5} is neither "
                    f"{dataset.python.md5} (python) nor {dataset.binary.md5} (binary); fetch it again"
                )
            yield member

    def pictures() -> Iterator[Picture]:
        for member, place in placed(unofficial(members(path, pulse.check)), layout):
            test, folder = place
            name = f"{path}: {'/'.join(member.parts)}"
            yield Picture(name, test, dataset.classes.index(folder), member.whole(path))

    return _read(dataset, layout, pictures(), pulse)


def placed(members: Iterable[Member], layout: Layout) -> Iterator[tuple[Member, tuple[bool, str]]]:
    """A tar's pictures and their places. Raises `UserError` for one that is in it twice.

    Whoever unpacks the tar gets the last one alone, and whoever reads it from front to back learns of it too late.
    """
    seen: set[int] = set()  # hashes, which take less memory than names: 0.1 kB a picture
    for member in members:
        if (place := layout.place(member.parts)) is not None:
            name = "/".join(member.parts)
            if hash(name) in seen:
                raise UserError(
                    f"{layout.source}: {shown(name)} is in it twice, as `tar -r` leaves what it updates; make the tar "
                    "anew, from its files"
                )
            seen.add(hash(name))
            yield member, place


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of an image folder."""

    root: Path
    files: tuple[str, ...]  # by their paths below `root`, in the order of these: less memory than a Path each
    mark: str  # changes when files come, go, are moved or written anew
    empty: tuple[str, ...]  # names of folders for a class of train's in which no file is


def scan(folder: Path, pulse: Pulse) -> Tree | None:
    """The image tree in `folder`, or in the one folder in it; None if there is none. Raises `UserError`."""
    try:
        root = _root(folder)
        if root is None:
            return None
        # folder by folder: "\0" comes before all that a name may hold
        files = sorted(_walk(root, pulse), key=lambda name: name.replace("/", "\0"))
        empty = _folders(root / "train") - {name.split("/")[1] for name in files}
        digest = hashlib.sha256()
        for name in files:  # with its name: a picture that is moved to another class keeps its size and time
            pulse.beat(f"listing {shown(folder)}")
            digest.update(os.fsencode(name) + f"\0{version((root / name).stat())}\n".encode())
    except OSError as e:
        raise told(e, f"can't read {shown(e.filename or folder)}") from e
    return Tree(root, tuple(files), f"files:{len(files)},sha256:{digest.hexdigest()}", tuple(sorted(empty)))


def version(status: os.stat_result) -> str:
    """What a file's bytes are known by while nobody reads them: other ones have another.

    The time of change is what nobody sets: a file that is built anew may be as long as before, and of the same time of
    modification (SOURCE_DATE_EPOCH, cp -p). Its inode adds nothing, and some network file systems number anew.
    """
    return f"bytes:{status.st_size},newest:{status.st_mtime_ns},changed:{status.st_ctime_ns}"


def read_tree(dataset: Dataset, tree: Tree, pulse: Pulse) -> Splits:
    """The pictures of an image folder. Raises `UserError`."""
    layout = _layout(dataset, tree.root)

    def pictures() -> Iterator[Picture]:
        for name in tree.files:
            if (place := layout.place(tuple(name.split("/")))) is not None:
                test, folder = place
                yield Picture(str(tree.root / name), test, dataset.classes.index(folder), tree.root / name)

    return _read(dataset, layout, pictures(), pulse)


def _read(dataset: Dataset, layout: Layout, pictures: Iterable[Picture], pulse: Pulse) -> Splits:
    splits = decode_all(dataset, pictures, pulse)
    layout.tell_ignored(pulse)
    return splits


def _root(folder: Path) -> Path | None:
    """Where train and test lie; looked for nowhere deeper, so that a wrong folder isn't searched for ever."""
    inside = [p for p in sorted(folder.iterdir()) if p.is_dir() and not hidden((p.name,))]
    if any(p.name in SPLITS for p in inside):
        return folder
    if len(inside) == 1 and any((inside[0] / split).is_dir() for split in SPLITS):
        return inside[0]
    return None


def _walk(root: Path, pulse: Pulse) -> Iterator[str]:
    """Every file's path below `root`, also where a link leads: a part of a data set is often made of links to its
    classes' folders.
    """
    for split in SPLITS:
        for folder, folders, names in os.walk(root / split, onerror=_raise, followlinks=True):
            pulse.beat(f"listing {shown(folder)}")
            folders[:] = [name for name in folders if not hidden((name,)) and not _leads_back(Path(folder, name))]
            for i, name in enumerate(names):
                if i % 1000 == 0:
                    pulse.check()
                path = Path(folder, name)
                # a link that leads nowhere too, of which whoever looks at it is told: what it names was never fetched
                if not hidden((name,)) and (path.is_file() or not path.exists()):
                    yield str(path.relative_to(root))


def _folders(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.is_dir() and not hidden((p.name,))} if folder.is_dir() else set()


def _leads_back(folder: Path) -> bool:
    """Whether this is a link to a folder on the way to it, which would be walked for ever."""
    return folder.is_symlink() and any(folder.resolve() == above.resolve() for above in folder.parents)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # one of test and val is never there
        raise error
