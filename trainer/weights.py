"""The weights that a new run begins with: found, checked, read.

    none        chance
    WORD        those that the network's makers publish (`imagenet`), got once by `entrypoint.py weights`
    PATH        a .safetensors file, a folder with a model.safetensors in it, or a .pth file under its published name
    URL         another run's result: its store's URL and its name, for example gs://BUCKET/runs/NAME

torchvision publishes pickles, named after the beginning of their SHA-256. One is opened only when its bytes have that
SHA-256, and by torch's unpickler that makes nothing but tensors; `entrypoint.py weights` turns it into safetensors, so
that an image holds none and a start opens none. What isn't there is never replaced by chance: exit code 78.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer import job as jobs
from trainer.data.dataset import shown
from trainer.data.download import fetch
from trainer.data.paths import cache_folder, expanded, reading
from trainer.data.pulse import Pulse
from trainer.data.remote import patient
from trainer.data.scratch import remove_stale, replacing, scratch
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.parts import encode

log = logging.getLogger("baton")

BAKED = Path(__file__).parent.parent / "weights"
CHUNK = 8 << 20  # bytes read between two looks at `check`
_SHA256_IN_NAME = re.compile(r".+-([0-9a-f]{8,64})\.pth")

Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Published:
    """A network's weights as its makers publish them: a .pth file whose name ends in the beginning of its SHA-256."""

    job: str
    model: str
    url: str

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def command(self) -> str:
        return f"python entrypoint.py weights {self.job} --model {self.model}"


def published(job: str, model: str) -> Published:
    """What a job's network is published as; `model` "": the job's first preset's. Raises `UserError`."""
    module: Any = jobs.load(job)
    if not hasattr(module, "published_url"):
        raise UserError(f"{job}: nobody publishes weights for its networks", ExitCode.USAGE)
    model = model or str(next(iter(module.PRESETS.values()))["model"])
    return Published(job, model, module.published_url(model))


def is_url(weights: str) -> bool:
    return "://" in weights


def is_path(weights: str) -> bool:
    return "/" in weights or weights.endswith((".safetensors", ".pth"))


def cache() -> Path:
    return cache_folder() / "baton" / "weights"


def read(weights: str, check: Check) -> dict[str, Tensor]:
    """The tensors that a path or the URL of a run means, on the CPU.

    Raises `UserError` where they aren't there or aren't whole, `StoreError`, and what `check` does.
    """
    return _of_run(weights, check) if is_url(weights) else _of_path(expanded(weights), check)


def beside(weights: str, file: str, check: Check) -> bytes | None:
    """A small file that lies beside the weights of a path or a run; None where there is none. Raises as `read` does."""
    if is_url(weights):
        return _result_file(weights, file, check)
    path = expanded(weights)
    with reading(path):
        path = (path if path.is_dir() else path.parent) / file
        return _bytes(path, check) if path.is_file() else None


def warn_of_other_classes(weights: str, classes: Sequence[str], check: Check) -> None:
    """Of as many as the data's, by the names beside the weights: then the last layer is taken as well."""
    try:
        config = json.loads(beside(weights, "config.json", check) or b"{}")
    except ValueError:
        return
    named = config.get("classes") or config.get("id2label") if isinstance(config, dict) else None
    if isinstance(named, dict) and all(map(str.isdecimal, named)):
        named = [named[number] for number in sorted(named, key=int)]
    theirs = list(map(str, named)) if isinstance(named, list) else []
    if not all(name.startswith("LABEL_") for name in theirs):  # as transformers calls those without a name
        warn_of_other_names(weights, theirs, classes)


def warn_of_other_names(weights: str, theirs: Sequence[str], classes: Sequence[str]) -> None:
    """Where the weights tell as many classes apart as the data has, but these ones."""
    if len(theirs) == len(classes) and list(theirs) != list(classes):
        log.warning(
            "weights: %s: tell other classes apart than the data, and begin as if they were these: %s",
            shown(weights),
            f"{', '.join(map(shown, theirs)):.100} -> {', '.join(map(shown, classes)):.100}",
        )


def find(published: Published, check: Check) -> dict[str, Tensor]:
    """Published weights, from the image, the cache or torch's own cache. Raises `UserError` with what gets them."""
    for folder in (BAKED, cache()):
        path = folder / f"{published.model}.safetensors"
        with reading(path):
            if path.is_file():
                return _kept(published, path, check)
    path = Path(os.environ.get("TORCH_HOME") or cache_folder() / "torch", "hub", "checkpoints", published.file)
    with reading(path):
        if path.is_file():
            return _read_pth(path, _prefix(published.file), check)
    raise UserError(
        f"{published.model}'s published weights aren't here; get them: {published.command} (into an image: make image "
        f"WEIGHTS={published.job}:{published.model}), or begin by chance: --weights none"
    )


def _kept(published: Published, path: Path, check: Check) -> dict[str, Tensor]:
    """What `get` once put there. Raises `UserError` where it is another's or has changed."""
    state, said = _read_safetensors(path, check)
    if said.get("published") != published.file or "sha256" not in said:
        raise UserError(f"{shown(path)}: isn't {published.file}; get it again: {published.command}")
    return state


def examine(job: str, model: str, folder: Path, check: Check) -> None:
    """Raise `UserError` unless `folder` holds a model's weights whole: an image brings no others along."""
    module: Any = jobs.load(job)
    if hasattr(module, "examine_folder"):
        module.examine_folder(folder / model, check)
    else:
        wanted = published(job, model)
        path = folder / f"{wanted.model}.safetensors"
        with reading(path):
            if not path.is_file():
                raise UserError(f"{shown(path)}: isn't there; get it: {wanted.command}")
        _kept(wanted, path, check)


def get(published: Published, source: str | None, folder: Path, check: Check, say: Callable[[str], None]) -> Path:
    """Put published weights into `folder` as safetensors, from their address or from `source` (a file or an address).

    Raises `UserError` where they can't be had or aren't those, and what `check` does; nothing is changed then.
    """
    pulse = Pulse(check, say)
    target = folder / f"{published.model}.safetensors"
    remove_stale(folder)
    if source is not None and not source.startswith(("http://", "https://")):
        state = _read_pth(expanded(source), _prefix(published.file), check)
    else:
        say(f"fetching {published.file}")
        with scratch(folder) as file:
            fetch(source or published.url, file, pulse)
            state = _read_pth(file.path, _prefix(published.file), check, published.file)
    part = encode({name: tensor.contiguous() for name, tensor in state.items()}, _said(published, state))
    with replacing(target) as new:
        for chunk in part.chunks:
            check()
            new.write(chunk)
    say(f"{published.model}: {len(state)} tensors of {published.file}, {part.size / 1e6:.1f} MB, in {shown(target)}")
    return target


def _said(published: Published, state: Mapping[str, Tensor]) -> dict[str, str]:
    return {"published": published.file, "url": published.url, "sha256": _sha256(state)}


def _sha256(state: Mapping[str, Tensor]) -> str:
    """Of the tensors' bytes in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _prefix(file: str) -> str:
    """The beginning of the SHA-256 in a published file's name; "" where it has none."""
    match = _SHA256_IN_NAME.fullmatch(file)
    return match[1] if match else ""


def _of_path(path: Path, check: Check) -> dict[str, Tensor]:
    with reading(path):
        if path.is_dir():
            path = path / "model.safetensors"
        if not path.is_file():
            raise UserError(
                f"--weights: {shown(path)} isn't there; give a .safetensors file, a folder with one (a run's is its "
                "result/), or a URL"
            )
    if path.suffix != ".pth":
        return _read_safetensors(path, check)[0]
    if not (prefix := _prefix(path.name)):
        raise UserError(
            f"{shown(path)}: a pickle without its SHA-256 in its name is not opened; save its tensors with "
            "safetensors.torch.save_file"
        )
    return _read_pth(path, prefix, check)


def _of_run(url: str, check: Check) -> dict[str, Tensor]:
    data = _result_file(url, "model.safetensors", check)
    if data is None:
        raise UserError(f"--weights {shown(url)}: no finished run is there; a run has its result when it has ended")
    return _parsed(data, url)[0]


def _result_file(url: str, file: str, check: Check) -> bytes | None:
    """A file of a run's result, held to its SHA-256; None where no finished run with such a file is."""
    root, _, run = url.rstrip("/").rpartition("/")
    store = patient(root, check)
    history = History(store, run)
    record = history.read_record("result.json")
    files = record.get("files") if record else None
    entry = files.get(file) if isinstance(files, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
        return None
    size, sink = int(str(entry["size"])), io.BytesIO()
    for start in range(0, size, CHUNK):
        check()
        store.get(history.key("result", file), sink, byte_range=(start, min(start + CHUNK, size)))
    data = sink.getvalue()
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise UserError(f"--weights {shown(url)}: its {file} isn't what its result.json says; damaged?")
    return data


def _read_safetensors(path: Path, check: Check) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and what else the file says; held to the SHA-256 that it says, if any."""
    state, said = _parsed(_bytes(path, check), path)
    if "sha256" in said and "published" in said and _sha256(state) != said["sha256"]:
        raise UserError(f"{shown(path)}: its bytes have changed since it was written; get it again")
    return state, said


def _bytes(path: Path, check: Check) -> bytes:
    pieces = []
    with reading(path), path.open("rb") as file:
        while piece := file.read(CHUNK):
            check()
            pieces.append(piece)
    return b"".join(pieces)


def _parsed(data: bytes, where: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        state = load(data)
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    except (SafetensorError, ValueError, struct.error) as e:
        raise UserError(f"{shown(where)}: no whole safetensors file ({shown(e)})") from e
    return state, dict(header.get("__metadata__") or {})


def _read_pth(path: Path, prefix: str, check: Check, name: str = "") -> dict[str, Tensor]:
    """A .pth file's tensors, once its SHA-256 is seen to begin with `prefix`."""
    data = _bytes(path, check)
    sha256 = hashlib.sha256(data).hexdigest()
    if not sha256.startswith(prefix):
        raise UserError(
            f"{name or shown(path)}: its SHA-256 begins with {sha256[: len(prefix)]}, not {prefix}: cut short, changed "
            "or another file; not opened; fetch it again"
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as e:
        raise UserError(f"{name or shown(path)}: no weights that can be read: {shown(str(e).splitlines()[0])}") from e
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{name or shown(path)}: holds other things than tensors by name; not used")
    return {str(key): tensor.detach() for key, tensor in state.items()}
