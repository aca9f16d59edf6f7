"""Which of Azure's scheduled events mean this machine, and what for."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest

from watchers.azure import AzureWatcher, _names, events_of, most_urgent
from watchers.metadata import Odd
from watchers.protocol import Notice

NOW = 1_790_000_000.0


def event(kind: str = "Preempt", in_s: float | None = 30.0, name: str = "trainer_3", **other: Any) -> dict[str, Any]:
    when = "" if in_s is None else formatdate(NOW + in_s, usegmt=True)
    return {"EventId": f"{kind}-{in_s}", "EventType": kind, "Resources": [name], "NotBefore": when, **other}


def judge(*events: Any, name: str = "trainer_3") -> Notice | None:
    return most_urgent(events_of(list(events), frozenset({name})), NOW, lambda event_id: None)


@pytest.mark.parametrize(
    ("kind", "action"),
    [(k, "stop") for k in ("Preempt", "Terminate", "Reboot", "Redeploy")] + [("Freeze", "save"), ("Novelty", "save")],
)
def test_each_kind_has_its_action(kind: str, action: str) -> None:
    notice = judge(event(kind))
    assert notice is not None
    assert (notice.action, notice.deadline) == (action, NOW + 30)
    assert notice.detail.isprintable()


def test_events_of_other_machines_of_the_set_are_none_of_ours() -> None:
    assert judge(event(name="trainer_4"), event("Reboot", name="trainer_33")) is None


@pytest.mark.parametrize(
    ("compute", "names"),
    [
        ({"name": "Trainer_3", "resourceId": "/x/virtualMachineScaleSets/trainer/virtualMachines/3"}, {"trainer_3"}),
        ({"name": "vm", "resourceId": "/x/virtualMachines/VM-real"}, {"vm", "vm-real"}),
        ({"name": "vm"}, {"vm"}),
    ],
)
def test_a_machine_is_known_by_its_name_and_its_resource(compute: dict[str, Any], names: set[str]) -> None:
    assert _names(compute) == names


def test_what_stops_beats_what_saves_and_what_has_begun_what_is_to_come() -> None:
    order = [
        event("Reboot", None),
        event("Preempt", 30),
        event("Redeploy", 600),
        event("Freeze", 1),
        event("Freeze", 60),
    ]
    for most in range(len(order)):
        notice = judge(*reversed(order[most:]))
        assert notice is not None
        assert order[most]["EventId"] in notice.id


def test_an_event_that_is_days_ahead_saves_and_stops_when_it_comes_near() -> None:
    far, near = judge(event("Redeploy", 3 * 86400)), judge(event("Redeploy", 1200))
    assert far is not None
    assert near is not None
    assert (far.action, near.action) == ("save", "stop")
    assert far.id != near.id


@pytest.mark.parametrize("not_before", ["", None, "soon", 5, "Mon, 99 Foo 2016 18:29:47 GMT"])
def test_a_time_that_is_blank_or_odd_leaves_the_deadline_open(not_before: object) -> None:
    notice = judge(event(NotBefore=not_before))
    assert notice is not None
    assert (notice.action, notice.deadline) == ("stop", None)


def test_it_is_acknowledged_only_if_it_stops_this_machine_and_names_no_other() -> None:
    notices = [judge(event()), judge(event(Resources=["trainer_3", "trainer_4"])), judge(event("Freeze"))]
    assert [n is not None and n.acknowledge is not None for n in notices] == [True, False, False]


def test_an_odd_event_hides_no_other_and_is_told_of_where_it_is_alone() -> None:
    assert judge({"EventId": 5}, event()) is not None
    with pytest.raises(Odd, match="odd"):
        judge({"EventId": 5})


def test_the_same_incarnation_is_read_once_and_judged_each_time() -> None:
    from tests.emulators.metadata import Metadata

    with Metadata("azure") as service:
        service.notice("Redeploy", in_s=4000.0)
        watcher = AzureWatcher(service.url)
        first, second = watcher.check(), watcher.check()
        assert first is not None
        assert second is not None
        assert first.id == second.id
        assert len(service.asked("/metadata/instance/compute")) == 1
        assert time.time() - first.seen < 60
