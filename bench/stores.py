"""Saving and restoring 200 MB on each kind of store, beside the SDK's own bare transfer of the same bytes, in turn.

Saving is from a step boundary to the durable commit: the copy to host memory, hashing, all parts, the fence, the
manifest. The bare upload is what the SDK's manual offers for one object: boto3's upload_fileobj, Google's
transfer_manager (which takes files: one on tmpfs), Azure's upload_blob, each with parts of 8 MB and 8 at once; on a
folder, a file written and synced. Except on S3, whose SDK checks each part by itself, it stands beside requests of
the size of Baton's too, each checked by the server, or synced in a folder. Google's emulator takes whole objects one
at a time, Azure's all requests on one thread. All ways of saving are measured with the allocator set as in a run, to
keep freed memory for the next save.
Restoring reads and hashes every part; the bare download is the SDK's parallel one. Both are measured in a process
whose memory is new for each of them, as a start's is.
The servers are the emulators of tests/emulators on this machine, and share its processors with what is measured, which
shows. --apart gives them the last one to themselves, and what is measured the others, in all ways alike: a store has
machines of its own. --link makes loopback as slow as a network: there they wait as well.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from measure import in_turn, machine, ratio, scratch, spread

import torch  # isort: skip
from torch import nn

from storage import open_store
from tests.clouds import reached
from tests.emulators.azurite import Azurite
from tests.emulators.gcs import GoogleEmulator
from tests.emulators.moto import MotoS3
from trainer.checkpoint import HostBuffers, Position, take
from trainer.commit import RunFacts, Save, prepare
from trainer.history import History
from trainer.job import Task
from trainer.machine import keep_memory
from trainer.parts import PART_BYTES

BUCKET, PART, AT_ONCE = "baton-bench", 8 << 20, 8
LAYERS, WIDTH = 48, 240
STATE_BYTES = 2 * LAYERS * WIDTH * WIDTH * 9 * 4  # fp32 weights and their momentum


class Made(Task):
    """A model of 100 MB with its momentum: 48 matrices, most of them in the order that convolutions like."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(WIDTH, WIDTH, 3, bias=False) for _ in range(LAYERS)]
        self.model = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.optimizers = {"sgd": optimizer}


class Saving:
    """Saves and loads the made-up state as an attempt does."""

    def __init__(self, url: str) -> None:
        self.task, self.position, self.buffers = Made(), Position(), HostBuffers()
        self.history = History(open_store(url), "bench")
        self.facts = RunFacts(
            run="bench",
            job="cifar10",
            attempt=self.history.claim({}),
            steps=1 << 30,
            steps_per_epoch=100,
            settings={},
            machine={},
            synthetic=False,
        )
        self.parent: str | None = None

    def save(self) -> float:
        self.position.step += 1
        begun = time.perf_counter()
        snapshot = take(self.task, self.position, self.buffers)
        save = Save(snapshot, {}, [], list)
        # nothing is fresh: every part is sent, as if training had changed it
        done = prepare(self.history, self.facts, save, self.parent, frozenset(), lambda **_: None)
        done.make(self.history, lambda **_: None)
        seconds = time.perf_counter() - begun
        assert done.sent >= STATE_BYTES
        self.parent = done.manifest.name
        return seconds


# --- the bare ways: each gives an upload and a download of `body`


def bare_s3(body: bytes, _folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    import boto3
    from boto3.s3.transfer import TransferConfig

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=AT_ONCE)
    return (
        lambda: client.upload_fileobj(io.BytesIO(body), BUCKET, "bare", Config=config),
        lambda: client.download_fileobj(BUCKET, "bare", io.BytesIO(), Config=config),
    )


def bare_google(body: bytes, folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client, transfer_manager

    blob = Client(project="bench", credentials=AnonymousCredentials()).bucket(BUCKET).blob("bare")
    (folder / "body").write_bytes(body)
    options = {"chunk_size": PART, "worker_type": transfer_manager.THREAD, "max_workers": AT_ONCE}

    def download() -> None:
        blob.reload()
        transfer_manager.download_chunks_concurrently(blob, str(folder / "down"), **options)

    return lambda: transfer_manager.upload_chunks_concurrently(str(folder / "body"), blob, **options), download


def folder_request(folder: Path) -> Callable[[str, bytes], object]:
    def write(name: str, piece: bytes) -> None:
        where, scratch = folder / name.replace("/", "-"), folder / f"{name.replace('/', '-')}-new"
        with open(scratch, "wb", buffering=0) as file:
            file.write(piece)
            os.fsync(file.fileno())
        os.replace(scratch, where)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    return write


def google_request(_folder: Path) -> Callable[[str, bytes], object]:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    bucket = Client(project="bench", credentials=AnonymousCredentials()).bucket(BUCKET)
    return lambda name, piece: bucket.blob(name).upload_from_string(piece, checksum="crc32c")


def azure_request(_folder: Path) -> Callable[[str, bytes], object]:
    from azure.storage.blob import ContainerClient

    container = ContainerClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"], BUCKET)
    return lambda name, piece: container.upload_blob(name, piece, overwrite=True, validate_content=True)


def requests_of(body: bytes, upload: Callable[[str, bytes], object]) -> Callable[[], object]:
    """The same bytes in as large requests as Baton's, each durable and checked by the server, eight at once."""
    pieces = [body[at : at + PART_BYTES] for at in range(0, len(body), PART_BYTES)]

    def work() -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(upload, (f"bare/{number}" for number in range(len(pieces))), pieces))

    return work


def bare_azure(body: bytes, _folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    from azure.storage.blob import ContainerClient

    sizes = {"max_block_size": PART, "max_single_put_size": PART, "max_chunk_get_size": PART}
    container = ContainerClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"], BUCKET, **sizes)
    blob = container.get_blob_client("bare")
    return (
        lambda: blob.upload_blob(body, overwrite=True, max_concurrency=AT_ONCE),
        lambda: blob.download_blob(max_concurrency=AT_ONCE).readall(),
    )


def bare_folder(body: bytes, folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    where = folder / "bare"

    def upload() -> None:
        with open(where, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())

    return upload, where.read_bytes


REQUESTS = {"local": folder_request, "gs": google_request, "az": azure_request}
BARE = {"local": bare_folder, "s3": bare_s3, "gs": bare_google, "az": bare_azure}


@contextmanager
def link(rate: str) -> Iterator[None]:
    """Loopback as fast as a network, by tc(8); everything on this machine that uses it meanwhile goes through it."""
    if not rate:
        yield
        return
    tc = ["tc", "qdisc"]
    subprocess.run([*tc, "add", "dev", "lo", "root", *f"tbf rate {rate} burst 1mb latency 100ms".split()], check=True)
    try:
        yield
    finally:
        subprocess.run([*tc, "del", "dev", "lo", "root"], check=True)


@contextmanager
def served(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a store of this kind, which this process and its children reach."""
    if kind == "local":
        yield f"file://{folder}/store"
        return
    made: dict[str, Callable[[], Any]] = {
        "s3": MotoS3,
        "gs": lambda: GoogleEmulator(folder / "google"),
        "az": lambda: Azurite(folder / "azure"),
    }
    with made[kind]() as emulator, reached(emulator.env):
        emulator.make_bucket(BUCKET)
        yield emulator.url(BUCKET, "runs")


def peak_mb() -> float:
    """This process's own peak, unlike ru_maxrss, which a child inherits."""
    return next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x) / 1024


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """`work` as what `in_turn` measures, in seconds."""

    def seconds() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return seconds


def stall(rounds: int) -> None:
    """What the training thread waits for, against one copy of the same tensors by torch."""
    saving = Saving(f"file://{tempfile.mkdtemp()}")
    task, buffers = saving.task, HostBuffers()
    tensors = [*task.model.parameters(), *(s["momentum_buffer"] for s in task.optimizers["sgd"].state.values())]
    copies = [torch.empty_like(tensor) for tensor in tensors]

    def copy() -> None:
        with torch.no_grad():
            for target, tensor in zip(copies, tensors, strict=True):
                target.copy_(tensor)

    figures = in_turn(rounds, {"stall": timed(lambda: take(task, saving.position, buffers)), "one copy": timed(copy)})
    for name, seconds in figures.items():
        print(f"  {name:10} {spread([1000 * s for s in seconds], '.1f')} ms")
    print(f"  stall against one copy: {ratio(figures['stall'], figures['one copy'])}")


def bare(kind: str, folder: Path) -> tuple[Callable[[], object], Callable[[], object], bytes]:
    """The bare upload and download, and the bytes that they move; `folder` is what Google's take their files from."""
    body = os.urandom(STATE_BYTES)
    return *BARE[kind](body, folder), body


def measured(kind: str, rounds: int, processors: set[int]) -> None:
    """`processors`: for what is measured; the servers have this process's own."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        url = stack.enter_context(served(kind, folder))
        shm = Path("/dev/shm")
        fast = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=shm if shm.is_dir() and kind == "gs" else folder))
        )
        for part in PARTS:
            command = [
                sys.executable,
                __file__,
                "--store",
                kind,
                "--rounds",
                str(rounds),
                "--part",
                part,
                url,
                str(fast),
            ]
            subprocess.run(command, check=True, preexec_fn=partial(os.sched_setaffinity, 0, processors))


def print_saving(kind: str, rounds: int, url: str, folder: Path) -> None:
    keep_memory()  # as a run does
    saving = Saving(url)
    up, _, body = bare(kind, folder)
    ways = {"save": saving.save, "bare upload": timed(up)}
    if kind in REQUESTS:
        ways["bare requests"] = timed(requests_of(body, REQUESTS[kind](folder)))
    figures = in_turn(rounds, ways)
    print_figures(figures)
    print(f"  save against bare upload:      {ratio(figures['save'], figures['bare upload'])}")
    if kind in REQUESTS:
        print(f"  save against bare requests:    {ratio(figures['save'], figures['bare requests'])}")


def print_restoring(kind: str, rounds: int, url: str, folder: Path) -> None:
    history = History(open_store(url), "bench")
    newest = history.newest_good()
    assert newest is not None
    name = newest.manifest.name
    del newest  # its bytes
    up, down, _ = bare(kind, folder)
    up()
    ways = {"restore": timed(lambda: history.load(history.manifest(name))), "bare download": timed(down)}
    figures = in_turn(rounds, ways)
    print_figures(figures)
    print(f"  restore against bare download: {ratio(figures['restore'], figures['bare download'])}")


def print_memory(_kind: str, _rounds: int, url: str, _folder: Path) -> None:
    """How far the peak rises in two saves of a state."""
    keep_memory()  # as a run does
    saving = Saving(url)
    saving.history.store.put("warm", bytes(PART + 1))  # the SDK loads much of itself with its first upload in parts
    ctypes.CDLL(None).malloc_trim(0)  # making the state took more: give that back, and
    Path("/proc/self/clear_refs").write_text("5")  # let the peak begin anew
    before = peak_mb()
    for _ in range(2):
        saving.save()
    saved = peak_mb()
    state = STATE_BYTES / (1 << 20)
    print(f"  memory: saving takes {saved - before:.0f} MiB beside a state of {state:.0f} MiB: a copy of it", end="")
    print(f" and {saved - before - state:.0f} MiB")


def print_figures(figures: dict[str, list[float]]) -> None:
    for name, seconds in figures.items():
        print(f"  {name:14} {spread(seconds)} s")


# each in a process of its own
PARTS = {"saving": print_saving, "restoring": print_restoring, "memory": print_memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", action="append", choices=BARE, help="one of these; again for more; all if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--link", metavar="RATE", default="", help="make loopback so slow, such as 1gbit; wants root")
    parser.add_argument("--apart", action="store_true", help="give the server a processor of its own")
    parser.add_argument("--part", nargs=3, metavar=("PART", "URL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, url, folder = options.part
        PARTS[part](*options.store, options.rounds, url, Path(folder))
        return
    print(f"a state of {STATE_BYTES / 1e6:.0f} MB, {machine()}")
    stall(options.rounds)
    processors = os.sched_getaffinity(0)
    if options.apart:
        os.sched_setaffinity(0, {max(processors)})
        processors = processors - {max(processors)} or parser.error("--apart wants two processors")
    for kind in options.store or BARE:
        print(f"{kind}{options.link and f', over {options.link}'}{', apart' * options.apart}:", flush=True)
        with link(options.link):
            measured(kind, options.rounds, processors)


if __name__ == "__main__":
    main()
