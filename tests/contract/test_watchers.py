"""The watcher contract, kept by every watcher that is known here. A new watcher is one line in `SOURCES`.

The clouds' watchers ask a metadata service over real HTTP: tests/emulators/metadata.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from watcher_contract import Source, WatcherContract

from tests.emulators.metadata import NOTICE_S, Fault, Metadata
from watchers import HaltWatcher, Mailbox, Watch, Watcher, aws
from watchers.cloud import CLOUDS, find_and_watch
from watchers.gcp import MAINTENANCE_S


def halt_folder(folder: Path, name: str, _stack: ExitStack) -> Source:
    halt = folder / "halt"
    halt.mkdir()

    def fail() -> None:  # a loop of links: what even root can't look into
        halt.rename(folder / "aside")
        halt.symlink_to(halt)

    def heal() -> None:
        if halt.is_symlink():
            halt.unlink()
            (folder / "aside").rename(halt)

    return Source(
        lambda: HaltWatcher(halt),
        (halt / name).touch,
        (halt / name).unlink,
        {"unreadable": fail},
        heal,
        deadline_s=None,
    )


GOOGLE = {"Metadata-Flavor": "Google"}  # else Google's watchers would look no further
# what an answer to the watched document may be in its place
ANSWERS = {
    "malformed JSON": Fault("answer", status=200, body='{"action": "termi', headers=GOOGLE),
    "wrong type": Fault("answer", status=200, body='[1, {"Events": {}}]', headers=GOOGLE),
    "wrong type within": Fault(
        "answer", status=200, body='{"action": 5, "DocumentIncarnation": "x", "Events": [7]}', headers=GOOGLE
    ),
    "nothing": Fault("answer", status=200, headers=GOOGLE),
    "a bomb of brackets": Fault("answer", status=200, body="[" * 50_000, headers=GOOGLE),
    "bytes of no text": Fault("answer", status=200, body="\ud800\x00\x1b[2J", headers=GOOGLE),
    **{str(status): Fault("answer", status=status) for status in (401, 403, 404, 429, 500, 503)},
    "10 MB": Fault("huge"),
    "reset": Fault("reset"),
    "slow": Fault("delay", seconds=10),
    "byte by byte": Fault("trickle", seconds=0.2),
    "hung": Fault("hang"),
}
# what may answer in the whole service's place
SERVICES = {
    "another service": Fault("answer", status=200, body="<html>It works!</html>"),
    "forbidden": Fault("answer", status=403),
    "all hung": Fault("hang"),
}
REFUSED, REDIRECTED = "refused", "redirected"


@dataclass
class Service:
    """The metadata service of a test: restarted on its port after it was refused, with what it was told."""

    cloud: str
    stack: ExitStack
    now: Metadata = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.stack.enter_context(Metadata(self.cloud))
        self.url = self.now.url

    def restart(self) -> None:
        if self.now.closed:
            self.now = self.stack.enter_context(Metadata(self.cloud, port=self.now.port))
        self.now.heal()


def cloud_source(cloud: str, number: int, kind: str, document: str, deadline_s: float, stack: ExitStack) -> Source:
    """The watcher `number` of a cloud's, its notice of this kind in a document whose path holds `document`."""
    service = Service(cloud, stack)
    elsewhere = stack.enter_context(Metadata(cloud))
    elsewhere.notice(kind)

    def open_watcher() -> Watcher:
        watchers = CLOUDS[cloud].sources(service.url)
        for watcher in watchers:
            stack.callback(watcher.close)  # type: ignore[attr-defined]
        watchers[number].interval_s = 0.2
        if hasattr(watchers[number], "_wait_s"):
            watchers[number]._wait_s = 1.0  # type: ignore[attr-defined]
        return watchers[number]

    def strike(fault: Fault, path: str) -> Callable[[], None]:
        return lambda: service.now.faults.append(Fault(**{**vars(fault), "path": path}))

    def redirect() -> None:
        headers = {"Location": elsewhere.url + "/" + document, **GOOGLE}
        service.now.fault("answer", status=302, headers=headers, path=document)

    return Source(
        open_watcher,
        lambda: service.now.notice(kind) and None,
        lambda: service.now.clear(),
        {
            **{name: strike(fault, document) for name, fault in ANSWERS.items()},
            **{name: strike(fault, "") for name, fault in SERVICES.items()},
            REFUSED: lambda: service.now.stop(),
            REDIRECTED: redirect,
        },
        service.restart,
        deadline_s=deadline_s,
        stop_late=None if cloud == "gcp" else lambda: service.now.notice(kind, in_s=-5.0) and None,
        hang=lambda: service.now.fault("hang"),
    )


# name -> a quiet source, given a folder that is this test's alone
SOURCES: dict[str, Callable[[Path, ExitStack], Source]] = {
    "halt": lambda folder, stack: halt_folder(folder, "halt", stack),
    "preempt": lambda folder, stack: halt_folder(folder, "preempt.txt", stack),
    "aws": lambda _, stack: cloud_source("aws", 0, "spot", "spot/instance-action", NOTICE_S["aws"], stack),
    "gcp": lambda _, stack: cloud_source("gcp", 0, "preempted", "preempted", NOTICE_S["gcp"], stack),
    "gcp-maintenance": lambda _, stack: cloud_source(
        "gcp", 1, "TERMINATE_ON_HOST_MAINTENANCE", "maintenance-event", MAINTENANCE_S, stack
    ),
    "azure": lambda _, stack: cloud_source("azure", 0, "Preempt", "scheduledevents", NOTICE_S["azure"], stack),
}
FAULTS = {name: ["unreadable"] for name in ("halt", "preempt")} | {
    name: [*ANSWERS, *SERVICES, REFUSED, REDIRECTED] for name in SOURCES if name not in ("halt", "preempt")
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each source, with each of its faults where a test asks for one."""
    if "fault" in metafunc.fixturenames:
        pairs = [(name, fault) for name in SOURCES for fault in FAULTS[name]]
        metafunc.parametrize(("source", "fault"), pairs, indirect=["source"], ids=[f"{s}-{f}" for s, f in pairs])
    elif "source" in metafunc.fixturenames:
        metafunc.parametrize("source", SOURCES, indirect=True)


class TestWatchers(WatcherContract):
    @pytest.fixture
    def source(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
        with ExitStack() as stack:
            yield SOURCES[request.param](tmp_path, stack)


def test_a_token_that_is_worth_nothing_any_more_is_replaced_within_the_look() -> None:
    with Metadata("aws") as service:
        watcher = aws.AwsWatcher(service.url)
        assert watcher.check() is None
        service.expire()
        service.notice()
        assert watcher.check() is not None
        assert len(service.asked("token", "PUT")) == 2


def test_a_token_that_never_comes_is_named_in_plain_words_within_three_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def seconds() -> float:
        caplog.clear()
        watch, began = Watch([], Mailbox()), time.monotonic()
        assert find_and_watch("aws", watch) is not None
        while "--http-put-response-hop-limit 2" not in caplog.text:
            assert time.monotonic() < began + 60
            time.sleep(0.01)
        took = time.monotonic() - began
        watch.close()
        return took

    with Metadata("aws") as service, caplog.at_level("WARNING"):
        monkeypatch.setenv("BATON_AWS_METADATA", service.url)
        service.fault("hang", path="/latest/api/token")
        assert any(seconds() < 3 for _ in range(3)), "a busy machine may be late once"


def test_a_token_is_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "TOKEN_S", 600)
    monkeypatch.setattr(aws, "RENEW_S", 599.9)
    with Metadata("aws") as service:
        watcher = aws.AwsWatcher(service.url)
        watcher.check()
        watcher.check()
        time.sleep(0.15)
        watcher.check()
        assert len(service.asked("token", "PUT")) >= 2
        assert not [entry for entry in service.log if entry["status"] == 401]


def test_a_notice_without_a_readable_time_is_one_all_the_same() -> None:
    with Metadata("aws") as service:
        service.notice(time="soon")
        notice = aws.AwsWatcher(service.url).check()
        assert notice is not None
        assert (notice.action, notice.deadline) == ("stop", None)
    notice = aws.interruption({"action": "hibernate"}, time.time())
    assert (notice.action, notice.deadline) == ("stop", None)


def test_a_rebalance_recommendation_is_a_save_once_for_each_time_that_it_is_given() -> None:
    with Metadata("aws") as service:
        watcher, mailbox = aws.AwsWatcher(service.url), Mailbox()
        for when in ("2026-11-24T01:00:00Z", "2026-11-24T01:00:00Z", "2026-11-24T02:00:00Z"):
            service.notice("rebalance", noticeTime=when)
            notice = watcher.check()
            assert notice is not None
            assert notice.action == "save"
            mailbox.post(notice)
        assert len(mailbox.notices) == 2
        service.notice("spot")
        notice = watcher.check()
        assert notice is not None
        assert notice.action == "stop", "the more urgent one"


def test_a_proxy_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, Metadata("gcp") as service:
        proxy.settimeout(0.2)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert CLOUDS["gcp"].sources(service.url)[0].check() is None
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_change_is_answered_in_the_midst_of_a_long_look() -> None:
    with Metadata("gcp") as service:
        mailbox = Mailbox()
        watch = Watch(CLOUDS["gcp"].sources(service.url), mailbox)
        try:
            end = time.monotonic() + 30
            while len(service.asked("wait_for_change")) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            service.notice("MIGRATE_ON_HOST_MAINTENANCE")
            service.notice("preempted")
            assert mailbox.wait(30)
            while len(mailbox.notices) < 2 and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            watch.close()
        assert sorted(n.action for n in mailbox.notices) == ["save", "stop"]
        assert all(len(service.asked(f"{key}?")) < 3 for key in ("preempted", "maintenance-event")), "asked, not polled"
