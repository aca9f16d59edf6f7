"""What `report` shows: the ledger's figures and no others, prices that are known, and no words as commands."""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from console.report import comparison, page, picture, prices, tables
from tests.browser import look
from tests.histories import Copy, live
from tests.runs import command
from trainer.exits import UserError
from trainer.ledger import Ledger, account
from trainer.records import Records, read


def copy(begins: float, **what: Any) -> Copy:
    return Copy(
        **{"begins": begins, "start_up_s": 5, "ahead_s": 0, "told_at": None, "killed_at": None, "step_s": 2, **what}
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """A run that AWS took back, that vanished from Google and that Azure ended, its last machine on demand."""
    copies = [copy(0, told_at=60), copy(100, killed_at=170, ahead_s=200), copy(300, ahead_s=-300)]
    history = live(tmp_path_factory.mktemp("relay"), copies, 60, "10steps")
    found = read(history)
    assert found is not None
    for number, claim in found.claims.items():
        machine = {"instance_type": f"type-{number}", "region": "r", "spot": number != 3, "price_per_hour": 0.36}
        claim["machine"].update(machine)  # type: ignore[index, union-attr]
    return found


@pytest.fixture(scope="module")
def ledger(records: Records) -> Ledger:
    return account(records)


def with_machine(records: Records, **facts: Any) -> Ledger:
    claims = {n: {**claim, "machine": {**claim["machine"], **facts}} for n, claim in records.claims.items()}  # type: ignore[dict-item]
    return account(replace(records, claims=claims))


def test_the_table_has_what_the_records_say(ledger: Ledger) -> None:
    rows = tables.attempts(ledger, prices.load())
    assert [row["cloud"].text for row in rows] == ["AWS", "Google", "Azure"]
    assert [row["ended"].text for row in rows] == [
        "evicted by AWS, exit 75",
        "vanished; it may have gone on for 30 s",
        "finished, exit 0",
    ]
    for row, entry in zip(rows, ledger.entries, strict=True):
        assert row["cost $"].value == pytest.approx(0.36 * entry.wall_s / 3600, abs=1e-6)
        assert (row["learning rate"].value, row["momentum"].value) == (0.1, 0.9)
        assert row["images/s"].value == pytest.approx(4 / 2, rel=0.01), "4 samples in a step of 2 s"
    assert sum(row["epochs"].value for row in rows) == pytest.approx(3)  # type: ignore[misc]
    (run,) = tables.runs([ledger], prices.load())
    assert run["goodput"].value == pytest.approx(ledger.useful_s / ledger.wall_s, abs=1e-5)
    assert run["seconds"].value == pytest.approx(sum(row["seconds"].value for row in rows), abs=0.01)  # type: ignore[misc]
    assert [row["unseen s"].value for row in [*rows, run]] == [0, 30, 0, 30]
    assert run["lost steps"].value == ledger.lost_steps > 0


def test_an_unknown_price_is_said_to_be_unknown_and_makes_no_sum(records: Records) -> None:
    nothing = with_machine(records, price_per_hour=None)
    (run,) = tables.runs([nothing], prices.load())
    assert (run["cost $"].value, run["cost $"].text, run["rate $/h"].text) == (None, "unknown", "unknown")
    one = with_machine(records, price_per_hour=None)
    one.entries[0].machine["price_per_hour"] = 1.0  # type: ignore[index]
    (run,) = tables.runs([one], prices.load())
    assert run["cost $"].text == "unknown", "a part of a sum is not the sum"
    assert "unknown" in tables.as_csv([run])


def test_prices_come_from_the_machines_own_word_then_from_the_table(tmp_path: Path) -> None:
    file = tmp_path / "prices.csv"
    file.write_text(
        ",".join(prices.COLUMNS) + "\naws,big,,spot,1.5,2026-11,page\naws,big,,on-demand,5,2026-11,page\n"
        "aws,big,far,spot,2.5,,\nazure,old,,paid,0.7,,notes\n"
    )
    table = prices.load(file)

    def paid(**machine: Any) -> float | None:
        rate = table.paid(machine)
        return rate.usd_per_hour if rate else None

    big = {"cloud": "aws", "instance_type": "big"}
    assert paid(**big, spot=True) == 1.5
    assert paid(**big, spot=True, region="far") == 2.5
    assert paid(**big, spot=False) == 5
    assert paid(**big, spot=None) is None, "it may be either"
    assert paid(**big, spot=True, price_per_hour=1.0) == 1.0
    assert paid(cloud="azure", instance_type="old", spot=True) == 0.7
    assert paid(cloud="azure", instance_type="new", spot=True) is None
    on_demand = table.on_demand({**big, "spot": True})
    assert on_demand is not None
    assert on_demand.usd_per_hour == 5
    assert table.on_demand({"cloud": "azure", "instance_type": "old"}) is None, (
        "a rate of unknown kind is none on demand"
    )


def test_of_several_machines_each_is_paid_for_and_one_of_unknown_price_makes_the_sum_unknown() -> None:
    table = prices.load()
    known = {"cloud": "azure", "instance_type": "Standard_B2ms", "spot": True}
    for others, paid in (([known, known], 3 * 0.085), ([known, {"instance_type": "desk"}], None), ("x", 0.085)):
        rate = table.paid({**known, "others": others})
        assert (rate.usd_per_hour if rate else None) == (None if paid is None else pytest.approx(paid))


def test_the_table_in_the_image_has_the_users_rates() -> None:
    rates = {row["instance_type"]: float(row["usd_per_hour"]) for row in prices.load().rows}
    assert rates == {
        "Standard_B2ms": 0.085,
        "Standard_D4s_v3": 0.194,
        "Standard_B20ms": 0.843,
        "Standard_D8ds_v5": 0.504,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cloud,instance_type\naws,x\n", "lacks region"),
        (",".join(prices.COLUMNS) + "\naws,x,,spot,cheap,,\n", "row 2: 'cheap' is no price"),
        (",".join(prices.COLUMNS) + "\naws,x,,spot,nan,,\n", "is no price"),
        (",".join(prices.COLUMNS) + "\naws,x,,spit,1,,\n", "kind 'spit'"),
    ],
)
def test_a_price_table_that_can_not_be_is_refused_with_its_row(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        prices.load(tmp_path / "mine.csv")


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    '=HYPERLINK("http://evil.example")',
    "@SUM(A1)",
    "+1",
    "$\\frac{x$ \x1b[2J\n\u202e",
    "x" * 100_000,
]


def test_others_words_are_only_ever_shown(records: Records) -> None:
    words = itertools.cycle(HOSTILE)
    claims = {
        number: {
            **claim,
            "machine": {name: next(words) for name in ("host", "instance_type", "cloud", "region", "zone")},
        }
        for number, claim in records.claims.items()
    }
    ledger = account(replace(records, claims=claims))
    text = page.render([ledger], prices.load(), HOSTILE[1], 2e9)
    body = text[text.index("<main>") :]
    assert "evil.example" in body
    assert "<script" not in body
    assert "<img src=http" not in body
    assert "\x1b" not in text
    rows = list(csv.reader(io.StringIO(tables.as_csv(tables.attempts(ledger, prices.load())))))
    assert '\'=HYPERLINK("http://evil.example")' in itertools.chain(*rows)
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert all(len(cell) < 200 for row in rows for cell in row)


NONSENSE: list[Any] = [None, "x", [], {}, -1, 1e300, True, "9" * 50, math.inf]


def test_records_of_nonsense_take_no_report_down(records: Records) -> None:
    """Each field of each record in turn is something else, and then all are anything."""
    for value in NONSENSE:
        for name, part in spoiled(records, lambda value=value: value).items():  # type: ignore[misc]
            ledger = account(replace(records, **{name: part}))
            tables.as_csv(tables.attempts(ledger, prices.load()) + tables.runs([ledger], prices.load()))
    dice = random.Random(1)
    for _ in range(3):
        ledger = account(replace(records, **spoiled(records, lambda: dice.choice(NONSENSE))))
        page.render([ledger], prices.load(), "file:///x", 2e9)


def spoiled(records: Records, anything: Callable[[], Any]) -> dict[str, Any]:
    """Every record, with other values."""

    def odd(record: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            name: odd(value) if isinstance(value, dict) and len(value) > 2 and name != "settings" else anything()
            for name, value in (record or {}).items()
        }

    assert records.newest is not None
    return {
        "claims": {number: odd(claim) for number, claim in records.claims.items()},
        "ends": {number: odd(end) for number, end in records.ends.items()},
        "status": odd(records.status),
        "result": odd(records.result),
        "lines": {key: [odd(line) for line in lines] for key, lines in records.lines.items()},
        "newest": replace(records.newest, ledger=[odd(entry) for entry in records.newest.ledger]),
    }


def test_the_page_shows_the_ledgers_figures_on_every_screen_and_asks_for_nothing(ledger: Ledger) -> None:
    text = page.render([ledger, ledger], prices.load(), "file:///runs", 2e9).encode()
    light, dark = look(text, [390, 1280]), look(text, [390], dark=True)
    assert light.console == dark.console == []
    assert light.elsewhere == dark.elsewhere == []
    assert light.asked == ["/page", "/page"]
    for width, seen in light.seen.items():
        assert seen["needs"] <= seen["inner"] == width, f"{width} pixels wide, it needs {seen['needs']}"
        assert seen["broken"] == 0
    # other pictures for a phone, for a screen, and in the dark
    sources = [tuple(seen["source"]) for seen in (light.seen[390], light.seen[1280], dark.seen[390])]
    assert len(set(sources)) == 3
    expected = {**dict(enumerate([tables.runs([ledger, ledger], prices.load())] * 2))}
    expected.update({number: tables.attempts(ledger, prices.load()) for number in range(2, 6)})
    cells = light.seen[390]["cells"]
    assert {cell["table"] for cell in cells} == set(expected)
    for cell in cells:
        wanted = expected[cell["table"]][cell["row"] - 1][cell["column"]]
        assert cell["text"] == wanted.text
        assert cell["value"] == (None if wanted.value is None else str(wanted.value))
    shown = {cell["column"] for cell in cells}
    assert shown >= {"instance", "rate $/h", "seconds", "cost $", "epochs", "learning rate", "momentum", "accuracy"}


def test_runs_whose_samples_have_other_names_stand_side_by_side(ledger: Ledger) -> None:
    texts = replace(ledger, run="bert", unit="texts")
    text = page.render([ledger, texts], prices.load(), "file:///runs", 2e9)
    table = text[text.index('<section id="runs">') : text.index('<section class="run"')]
    columns = [table.count(f'<th scope="col" class="n">{unit}/s</th>') for unit in ("samples", "images", "texts")]
    assert columns == [1, 0, 0]
    assert table.count('<td data-column="samples/s" data-value="') == 2
    assert text.count('<th scope="col" class="n">texts/s</th>') == 1, "of the run by itself"


def test_of_the_stand_in_the_page_and_each_picture_say_so_and_the_table_has_a_column(ledger: Ledger) -> None:
    made = replace(ledger, run="made", synthetic=True)
    (row,) = tables.runs([made], prices.load())
    assert (row["run"].value, row["synthetic"].value) == ("made", "yes")
    assert '<td data-column="run" data-value="made" class="">made SYNTHETIC</td>' in page.render(
        [ledger, made], prices.load(), "x", 2e9
    )
    assert "made SYNTHETIC" in texts(picture.relay(made, titled=True))
    assert "made SYNTHETIC" in texts(comparison.picture([ledger, made], prices.load()) or b"")


def test_a_run_of_few_steps_has_each_step_once_below_its_picture(ledger: Ledger) -> None:
    short = replace(ledger, step=2, losses=[(1, 2.0, 1), (2, 1.0, 1)], evaluations=[])
    shown = texts(picture.relay(short))
    end = shown.index("step; dashed: another machine goes on")
    assert shown[end - 4 : end] == ["3", "0", "1", "2"], "the last attempt's number, then the steps"


def texts(svg: bytes) -> list[str]:
    """The words of a picture whose letters are drawn: matplotlib puts each beside its drawing."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_the_command_writes_all_of_it(tmp_path: Path, records: Records) -> None:
    store = tmp_path / "store"
    for name in ("one", "two"):
        live(store / name, [copy(0)], 30, "10steps")
        (store / name / "run").rename(store / f"run-{name}")
        (store / name).rmdir()
    for manifest in store.glob("run-*/checkpoints/*.json"):
        manifest.unlink()  # of another run's name, so not theirs: the records alone must do
    code, said = command("report", "--store", f"file://{store}", "--out", str(tmp_path / "out"), "--tensorboard")
    assert code == 0, said
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        *("report.html", "runs.csv", "attempts.csv", "relay-run-one.png", "relay-run-two.png", "tensorboard")
    }
    with (tmp_path / "out" / "attempts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["run-one", "run-two"]
    assert rows[0]["useful steps"] == "0", "no checkpoint: nothing is of use"


def test_a_checkpoint_whose_ledger_leaves_steps_out_is_told_and_counts_as_far_as_it_goes(records: Records) -> None:
    assert records.newest is not None
    first, _, third = records.newest.ledger
    odd = account(replace(records, newest=replace(records.newest, ledger=[first, third])))
    step = first["last_step"]
    assert odd.problems == [f"the ledger of checkpoint 000003-00000060 does not go on from step {step}"]
    assert [entry.useful_steps for entry in odd.entries] == [step, 0, 0]
