"""Content made to harm: refused in one line, the parent checkpoint taken, in little memory."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from storage import open_store
from tests.checkpoints import chain, history
from tests.clouds import Cloud, reached
from tests.runs import REPOSITORY, environment
from trainer.exits import UserError
from trainer.history import History
from trainer.manifest import Manifest, PartRef
from trainer.verify import verify

MEGABYTE = 1 << 20
# A process of its own, so that the peak is that of reading this store and no other; ru_maxrss would be the parent's
# where that is larger.
PEAK = """
import re
def peak():
    return int(re.search("VmHWM:\\s*([0-9]+) kB", open("/proc/self/status").read())[1]) // 1024
"""
SCRIPT = """
import sys
from console import logs
from storage import open_store
from trainer.history import History
logs.set_up("text")
before = peak()
newest = History(open_store(sys.argv[1]), "run").newest_good()
print(newest.manifest.step, peak() - before)
"""


def start(run: History, variables: Mapping[str, str] = MappingProxyType({})) -> tuple[int, int, list[str]]:
    """What a start finds: the step of the checkpoint taken, MB that it took, and the lines said."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK + SCRIPT, run.store.url],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**environment(), **variables},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    step, megabytes = map(int, last.split())
    return step, megabytes, lines


def with_part(run: History, manifest: Manifest, data: bytes, *others: PartRef) -> None:
    """The newest checkpoint's first part replaced, or this beside all `others`, with every name and checksum right."""
    sha256 = hashlib.sha256(data).hexdigest()
    run.store.put(run.key("parts", sha256), data)
    put(run, replace(manifest, parts=[PartRef("model", sha256, len(data)), *(others or manifest.parts[1:])]))


def put(run: History, manifest: Manifest) -> None:
    run.store.put(run.key("checkpoints", f"{manifest.name}.json"), manifest.with_state_hash().to_json())


def text(run: History, manifest: Manifest, body: bytes) -> None:
    run.store.put(run.key("checkpoints", f"{manifest.name}.json"), body)


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("/tmp/unpickled", "w"))


def part(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + b"\0" * 8


HOSTILE: dict[str, tuple[Callable[[History, Manifest], None], str]] = {
    "100 MB of JSON": (lambda r, m: text(r, m, b"[" + b"[]," * (33 * MEGABYTE) + b"[]]"), "too long for a manifest"),
    "JSON as long as allowed": (lambda r, m: text(r, m, b"[" + b"[]," * (2 * MEGABYTE) + b"[]]"), "not a manifest"),
    "8 EB": (lambda r, m: put(r, replace(m, parts=[replace(m.parts[0], size=8 << 60)])), "beyond 64 bits"),
    "a claim of 1 TB": (
        lambda r, m: put(r, replace(m, parts=[replace(m.parts[0], size=1 << 40), *m.parts[1:]])),
        "it should have 1099511627776",
    ),
    "a key that climbs": (
        lambda r, m: put(r, replace(m, parts=[replace(m.parts[0], sha256="../../../etc/passwd")])),
        "parts: not a part",
    ),
    "a parent that climbs": (lambda r, m: put(r, replace(m, parent="../../x")), "parent: not a checkpoint's name"),
    "a step that is text": (lambda r, m: put(r, replace(m, steps="100")), "steps: not a count"),  # type: ignore[arg-type]
    "an enormous time": (lambda r, m: put(r, replace(m, time=10**400)), "beyond 64 bits"),
    "a header bomb": (
        lambda r, m: with_part(r, m, part(b'{"a":' + b"[]" * (25 * MEGABYTE) + b"}")),
        "is no part of a checkpoint",
    ),
    "a header past the end": (lambda r, m: with_part(r, m, part(b"{}", 1 << 62)), "is no part of a checkpoint"),
    "a pickle in disguise": (lambda r, m: with_part(r, m, pickle.dumps(Harmful())), "is no part of a checkpoint"),
    "sums beyond all floats": (
        lambda r, m: put(r, replace(m, sums={"loss": "0x1p99999"})),
        "sums: 'loss' is no number",
    ),
    "a field twice": (
        lambda r, m: text(r, m, m.to_json().replace(b'"step":', b'"step": 7, "step":', 1)),
        "twice in one object",
    ),
    "a tensor twice in a part": (
        lambda r, m: with_part(r, m, part(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},' * 2 + b'"b":1}')),
        "its header is not JSON",
    ),
    "a tensor of nothing, but how much of it": (
        lambda r, m: with_part(
            r,
            m,
            part(
                b'{"a.weight":{"dtype":"F32","shape":[140737488355328,140737488355328,0],"data_offsets":[0,0]},'
                b'"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
            ),
        ),
        "tensor 'a.weight' has no shape",
    ),
    "a scalar that is none": (
        lambda r, m: put(r, replace(m, scalars={"sgd.0.step": {"x": [1]}})),
        "scalars: 'sgd.0.step' is no single value",
    ),
    "a part twice": (lambda r, m: put(r, replace(m, parts=[*m.parts, *m.parts])), "parts: one is named twice"),
    "a tensor in two parts": (
        lambda r, m: with_part(r, m, part(b'{"a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), *m.parts),
        "tensor 'a.weight' is in two of its parts",
    ),
    "tensors that overlap": (
        lambda r, m: with_part(
            r,
            m,
            part(
                b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                b'"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
            ),
        ),
        "does not lie where its size says",
    ),
    "a cursor's commands": (
        lambda r, m: put(r, replace(m, uuid="\x1b[2J\nerror: all is lost")),
        "uuid: not a name",
    ),
    "strides that are no object": (
        lambda r, m: with_part(
            r,
            m,
            part(
                json.dumps(
                    {
                        "__metadata__": {"strides": "[1]"},
                        "a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                    }
                ).encode()
            ),
        ),
        "is no part of a checkpoint",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_is_refused_in_a_line_and_the_parent_taken_in_little_memory(what: str, tmp_path: Path) -> None:
    """And `verify` says the same of it."""
    run = history(tmp_path)
    made = chain(run, 1, [10, 20])
    harm, words = HOSTILE[what]
    harm(run, made[1])
    step, megabytes, lines = start(run)
    assert step == 10
    assert len(lines) == 1
    assert f"checkpoint {made[1].name} is bad" in lines[0]
    assert words in lines[0]
    assert len(lines[0]) < 500
    assert megabytes < 400, "far less than what is claimed; most for 8 MB of JSON, or for a part of 50 MB"
    assert any(words in problem for problem in verify(run)[1].problems)
    assert not Path("/tmp/unpickled").exists()


LARGE = 150 * MEGABYTE


@pytest.mark.parametrize("first", [b"\xff" * 8, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", LARGE) + b"{"])
def test_a_large_part_without_a_header_is_not_read_at_all(first: bytes, tmp_path: Path) -> None:
    """Whatever its size: the machine's memory may be less."""
    run = history(tmp_path)
    made = chain(run, 1, [10, 20])
    with_part(run, made[1], first + b"\xff" * (LARGE - len(first)))
    step, megabytes, lines = start(run)
    assert (step, len(lines)) == (10, 1)
    assert "is no part of a checkpoint" in lines[0]
    assert megabytes < 60


def test_in_a_clouds_store_it_takes_no_more_memory(cloud: Cloud) -> None:
    """Of the cases above, those that would."""
    cases = [HOSTILE[what] for what in ("100 MB of JSON", "8 EB", "a header bomb")]
    with reached(cloud.emulator.env):
        run = History(open_store(cloud.url()), "run")
        made = chain(run, 1, [10, 20, 30, 40])
        for (harm, _), manifest in zip(cases, made[1:], strict=True):
            harm(run, manifest)
    step, megabytes, lines = start(run, cloud.emulator.env)
    assert step == 10
    for (_, words), manifest in zip(cases, made[1:], strict=True):
        assert any(f"checkpoint {manifest.name} is bad" in line and words in line for line in lines)
    assert megabytes < 400


def test_in_a_clouds_store_a_large_part_without_a_header_is_not_read_on(cloud: Cloud) -> None:
    with reached(cloud.variables):
        run = History(open_store(cloud.url()), "run")
        made = chain(run, 1, [10, 20])
        with_part(run, made[1], b"\xff" * (100 * MEGABYTE))
    step, megabytes, lines = start(run, cloud.variables)
    assert step == 10
    assert [line for line in lines if "is bad" in line and "is no part of a checkpoint" in line]
    assert megabytes < 110, "the SDK and some pieces; the part alone has 100"


def test_folders_in_the_manifests_places_begin_no_run_anew(tmp_path: Path) -> None:
    run = history(tmp_path)
    for manifest in chain(run, 1, [10, 20]):
        place = Path(run.store.url.removeprefix("file://"), "run", "checkpoints", f"{manifest.name}.json")
        place.unlink()
        place.mkdir()
        (place / "x").touch()
    with pytest.raises(UserError, match="none of the 2 checkpoints"):
        run.newest_good()


def test_a_mark_that_cannot_be_read_is_a_mark(tmp_path: Path) -> None:
    run = history(tmp_path)
    chain(run, 1, [10])
    run.store.put(f"run/checkpoints/{run.MARK}", b"\xff")
    with pytest.raises(UserError, match="marked as not whole"):
        run.newest_good()


RECORDS = {
    "long": b'{"a": "' + b"x" * (100 * MEGABYTE) + b'"}',
    "deep": b"[" * 500_000,
    "of another type": b"[1, 2]",
    "full of terminal commands": b'{"attempt": 1, "time": 1, "save_error": "\\u001b[2J\\n\\u202e", "host": "\\u001b"}',
    "full of half characters": b'{"attempt": 1, "host": "\\ud800", "save_error": "\\ud800", "time": 1}',
    "full of markup": b'{"attempt": 1, "host": "[/red]", "metrics": {"accuracy": "[/x]"}, "save_error": 3, "time": 1}',
    "full of enormous numbers": b'{"attempt": 1, "time": 1' + b"0" * 400 + b', "step": 1' + b"0" * 40 + b"}",
    "full of no numbers": b'{"attempt": 1, "time": NaN, "steps": Infinity, "seconds_left": "x", "epochs": []}',
    "full of infinite numbers": b'{"attempt": 1, "time": 1, "samples_per_s": 1e400, "save_error": [1e400]}',
}


@pytest.mark.parametrize("what", RECORDS)
@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_records_take_status_neither_down_nor_much_memory(what: str, form: str, tmp_path: Path) -> None:
    run = history(tmp_path)
    run.claim({"job": "cifar10", "machine": {"host": "[/bold]"}})
    chain(run, 1, [10, 20])
    for name in ("status.json", "result.json", "attempts/000001.end.json"):
        run.store.put(f"run/{name}", RECORDS[what])
    script = (
        f"{PEAK}\nimport sys, entrypoint\ncode = entrypoint.main(sys.argv[1:])\nsys.exit(code or 2 * (peak() > 150))"
    )
    options = ["--json"] if form == "json" else []
    done = subprocess.run(
        [sys.executable, "-c", script, "status", "--store", run.store.url, *options],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    assert "Infinity" not in done.stdout, "no JSON that others read"
