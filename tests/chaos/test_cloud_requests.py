"""What a checkpoint costs in requests, which clouds charge for: docs/stores.md's own figures."""

from __future__ import annotations

import itertools
import re
import signal
import statistics
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch

from storage import open_store
from tests.checkpoints import commit
from tests.clouds import Cloud, reached
from tests.emulators.proxy import Request
from tests.runs import REPOSITORY
from trainer.checkpoint import Snapshot
from trainer.commit import RunFacts, Save
from trainer.history import History
from trainer.parts import PART_BYTES
from trainer.retention import Excess, Retention

PAGE = (REPOSITORY / "docs/stores.md").read_text()
KINDS = ("write", "list", "read")
OPTIONS = ["--preset", "tutorial", "--batch-size", "20", "--checkpoint-every", "20steps"]
UNSIGNED = {"trainer.signs.SIGN_S": 1e6, "trainer.signs.NEWS_S": 1e6}  # signs of life come by the clock
# which credentials won, by kind and name
CREDENTIALS = {
    "s3": "credentials: environment variable AWS_ACCESS_KEY_ID",
    "gs": "credentials: none, as STORAGE_EMULATOR_HOST is set",
    "az": "credentials: key of batontest from AZURE_STORAGE_CONNECTION_STRING",
}


def told(state: str) -> dict[str, float]:
    """The page's row of this state."""
    row = re.search(rf"^\| {state}.* \| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+) \|$", PAGE, re.MULTILINE)
    assert row, state
    return dict(zip(KINDS, map(float, row.groups()), strict=True))


def test_a_small_networks_checkpoint_costs_the_handful_of_requests_that_the_page_tells(
    cloud: Cloud, tmp_path: Path, small_cifar: Path
) -> None:
    """In a real run, which tells who asks; and a part, however large, is one write.

    Counted from one look for a successor to the next, without what a clean-up asks that begins in between.
    """
    lab = cloud.compressed(tmp_path, small_cifar, UNSIGNED, *OPTIONS, "--epochs", "40")
    cloud.proxy.requests.clear()
    container = lab.start()
    assert container.wait_for("durable after", times=12), container.text
    container.signal(signal.SIGTERM)
    assert container.wait() == 75, container.text
    assert container.text.count("credentials: ") == 1
    assert CREDENTIALS[cloud.name] in container.text
    requests = [(kind_of(request), unquote(request.target)) for request in cloud.proxy.requests]
    own = without_cleaning(requests)
    looks = [n for n, request in enumerate(own) if is_look(request)]
    between = [Counter(kind for kind, _ in own[a:b]) for a, b in itertools.pairwise(looks)]
    assert len(between) > 10
    usual = statistics.mode(tuple(counted[kind] for kind in KINDS) for counted in between)
    assert dict(zip(KINDS, usual, strict=True)) == told("a small network")
    with reached(cloud.variables):
        store = open_store(cloud.url())
        cloud.proxy.requests.clear()
        store.put("part", [bytes(PART_BYTES // 2)] * 2)
    assert [kind_of(request) for request in cloud.proxy.requests] == ["write"]


def is_look(request: tuple[str, str]) -> bool:
    """Whether it asks for a successor."""
    return request[0] == "list" and "/attempts/" in request[1]


def without_cleaning(requests: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A clean-up looks for a successor, reads its own claim, then a manifest, then lists."""
    left: list[tuple[str, str]] = []
    for request in requests:
        kind, target = request
        if kind == "read" and "/checkpoints/" in target:
            look = max(n for n, before in enumerate(left) if is_look(before))
            del left[look : look + 2]
        elif kind == "write" or "/attempts/" in target:
            left.append(request)
    return left


def kind_of(request: Request) -> str:
    """As clouds charge for them."""
    if request.method not in ("GET", "HEAD"):
        return "delete" if request.method == "DELETE" else "write"
    path, _, query = request.target.partition("?")
    return "list" if "list-type=2" in query or "comp=list" in query or path.endswith("/o") else "read"


class Counting:
    """A store that counts its calls as the requests that they are on a cloud, each of its puts being of one part."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.url = store.url
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[{"put": "write", "get": "read", "stat": "read"}.get(name, name)] += 1
        return getattr(self._store, name)


def test_200_mb_cost_what_the_page_tells(tmp_path: Path) -> None:
    """The state that bench/stores.py saves, and like there in no part as large as what takes several requests."""
    model = {f"{n:02d}.weight": torch.full((240, 240, 3, 3), float(n)) for n in range(48)}
    momentum = {name: tensor + 0.5 for name, tensor in model.items()}
    store = Counting(open_store(f"file://{tmp_path}"))
    history = History(store, "run")
    facts = RunFacts(
        run="run",
        job="job",
        attempt=history.claim({}),
        steps=9,
        steps_per_epoch=9,
        settings={},
        machine={},
        synthetic=False,
    )
    store.calls.clear()
    save = Save(Snapshot(1, "0" * 64, {}, model, momentum, {}, frozenset()), {}, [], lambda: ['{"step": 1}'])
    done = commit(history, facts, save, None, frozenset(), lambda **_: None)
    assert 199e6 < done.sent < 201e6
    assert max(ref.size for ref in done.manifest.parts) <= PART_BYTES
    assert dict(store.calls) == told("200 MB")
    retention = Retention(history, 1)
    store.calls.clear()
    retention.between_saves(1, done.manifest.name, lambda: False, lambda: False)
    assert dict(store.calls) == {"list": 3, "read": 2}
    assert "three lists and two reads" in " ".join(PAGE.split())
    manifests, parts = (list(history.store.list(history.key(folder, ""))) for folder in ("checkpoints", "parts"))
    store.calls.clear()
    retention.remove(Excess(manifests, parts, 0))
    assert dict(store.calls) == {"delete": 33, "read": told("the removal of these 200 MB")["read"]}
    for state, parts_of in (("a small network", 2), ("200 MB", 32)):
        of = told(state)
        reads = of["read"] + 1 + 2 * parts_of  # and its removal's
        dollars = 0.005 * (of["write"] + of["list"]) + 0.0004 * reads  # 1,000 checkpoints, by the page's prices
        assert f"${dollars:.2f} of {state}" in " ".join(PAGE.split())


def test_to_know_that_a_run_is_not_marked_is_one_request(cloud: Cloud) -> None:
    """Asked before each part that is removed."""
    with reached(cloud.variables):
        history = History(open_store(cloud.url()), "run")
        history.write_record({}, "another")
        assert history.read_record("another") == {}  # after which it is known of an emulator which API it has
        cloud.proxy.requests.clear()
        assert not history.is_marked()
        assert [kind_of(request) for request in cloud.proxy.requests] == ["read"]
        history.mark("is unfinished")
        assert history.is_marked()
