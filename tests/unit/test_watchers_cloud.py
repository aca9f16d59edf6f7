"""Whose machine this is: found in under a second, whatever answers, and never taken for another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulators.metadata import FACTS, Metadata
from watchers import Mailbox, Watch, cloud
from watchers.cloud import CLOUDS, find, find_and_watch
from watchers.drill import DrillWatcher, parse

DMI = {
    "aws": {"sys_vendor": "Amazon EC2"},
    "gcp": {"product_name": "Google Compute Engine"},
    "azure": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
}


def point_to(url: str, patch: pytest.MonkeyPatch) -> None:
    """All three at the one address, as in reality."""
    for name in CLOUDS:
        patch.setenv(f"BATON_{name.upper()}_METADATA", url)


@pytest.fixture(params=list(CLOUDS))
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    with Metadata(request.param) as service:
        point_to(service.url, monkeypatch)
        yield service


def firmware(folder: Path, name: str) -> Path:
    for field, value in DMI[name].items():
        (folder / field).write_text(value + "\n")
    return folder


def test_a_machine_is_known_by_what_its_metadata_service_says(service: Metadata, tmp_path: Path) -> None:
    instance = find("auto", dmi=tmp_path / "none")
    assert instance is not None
    assert instance.cloud == service.cloud
    for name, value in FACTS[service.cloud].items():
        assert getattr(instance, name) == value


def test_on_demand_is_told_from_spot(service: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    with Metadata(service.cloud, spot=False) as other:
        point_to(other.url, monkeypatch)
        instance = find(service.cloud)
    assert instance is not None
    assert instance.spot is False


def test_the_firmware_spares_the_others_a_question(service: Metadata, tmp_path: Path) -> None:
    assert find("auto", dmi=firmware(tmp_path, service.cloud)) is not None
    paths = {"aws": "/latest/", "gcp": "/computeMetadata/", "azure": "/metadata/"}
    assert all(entry["path"].startswith(paths[service.cloud]) for entry in service.log)


@pytest.mark.parametrize("fault", ["hang", "delay", "trickle", "huge", "reset"])
@pytest.mark.parametrize("known", [True, False], ids=["firmware", "no firmware"])
def test_it_takes_under_a_second_whatever_the_service_does(
    service: Metadata, fault: str, *, known: bool, tmp_path: Path
) -> None:
    service.fault(fault, seconds=0.2 if fault == "trickle" else 10.0)
    dmi = firmware(tmp_path, service.cloud) if known else tmp_path / "none"

    def seconds() -> float:
        began = time.monotonic()
        instance = find("auto", dmi=dmi)
        assert (instance and instance.cloud) == (service.cloud if known else None)
        return time.monotonic() - began

    assert any(seconds() < 1 for _ in range(3)), "a busy machine may be late once"


def test_no_cloud_costs_nothing_after_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Metadata("aws") as gone:
        pass
    point_to(gone.url, monkeypatch)
    monkeypatch.setattr(cloud, "LATER_S", (0.1, 0.1))
    before = threading.active_count()
    watch = Watch([], Mailbox())
    for choice in ("auto", "none"):
        assert find_and_watch(choice, watch) is None
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_service_too_slow_at_the_start_is_found_and_heard_later(service: Metadata) -> None:
    service.fault("delay", seconds=0.95)
    mailbox = Mailbox()
    watch = Watch([], mailbox)
    try:
        assert find_and_watch("auto", watch) is None
        service.heal()
        service.notice()
        assert mailbox.wait(60)
        assert mailbox.stop is not None
        assert mailbox.stop.source == service.cloud
    finally:
        watch.close()


def test_a_service_that_comes_up_only_after_the_start_is_found_and_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    with Metadata("gcp") as gone:
        pass
    point_to(gone.url, monkeypatch)
    monkeypatch.setattr(cloud, "LATER_S", (1.0, 1.0, 10.0))
    mailbox = Mailbox()
    watch = Watch([], mailbox)
    try:
        assert find_and_watch("auto", watch) is None
        time.sleep(0.5)  # the first later look has been refused too
        with Metadata("gcp", port=gone.port) as service:
            service.notice()
            assert mailbox.wait(30)
    finally:
        watch.close()


def test_who_names_the_cloud_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Metadata("aws") as gone:
        pass
    point_to(gone.url, monkeypatch)
    instance = find("gcp")
    assert instance is not None
    assert (instance.cloud, instance.instance_type) == ("gcp", None)


@pytest.mark.parametrize("base", ["https://metadata", "metadata:80", "file:///etc", "http://"])
def test_an_address_of_no_use_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_AWS_METADATA", base)
    with pytest.raises(ValueError, match="not the address of a metadata service"):
        find("aws")


@pytest.mark.parametrize(("name", "seconds"), [("aws", 120), ("gcp", 30), ("azure", 30)])
def test_a_drill_gives_the_clouds_own_notice_at_its_time(name: str, seconds: float) -> None:
    early, due = DrillWatcher(name, 3600), DrillWatcher(name, 0)
    assert early.check() is None
    notice = due.check()
    assert notice is not None
    assert (notice.source, notice.action, notice.acknowledge is None) == (name, "stop", True)
    assert notice.detail.startswith("a drill: ")
    assert notice.deadline == pytest.approx(time.time() + seconds, abs=5)
    assert due.check() is notice


def test_a_longer_preemption_notice_counts_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_GCP_NOTICE", "120")
    with Metadata("gcp") as service:
        service.notice()
        notice = CLOUDS["gcp"].sources(service.url)[0].check()
    assert notice is not None
    assert notice.deadline == pytest.approx(time.time() + 120, abs=5)


def test_drills_are_a_cloud_and_a_time_each() -> None:
    assert parse("aws@300s, gcp@5m,azure@1.5h") == [("aws", 300.0), ("gcp", 300.0), ("azure", 5400.0)]
    assert parse("") == []


@pytest.mark.parametrize("text", ["aws", "aws@", "aws@300", "ibm@3s", "aws@-3s", "aws@3s,", "aws@3s;gcp@4s"])
def test_a_drill_that_can_t_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="aws@300s"):
        parse(text)
