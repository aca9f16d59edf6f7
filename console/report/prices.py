"""What a machine costs: what its own records say, else a table that users edit, else unknown; never a guess.

The table is prices.csv beside this file, or `--prices FILE`: cloud, instance_type, region (empty: any), kind,
usd_per_hour, date and source. Kinds: `spot`, `on-demand`, and `paid` for a rate that somebody paid and of which no more
is known.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.exits import UserError
from trainer.settings import Json

TABLE = Path(__file__).with_name("prices.csv")
KINDS = ("spot", "on-demand", "paid")
COLUMNS = ("cloud", "instance_type", "region", "kind", "usd_per_hour", "date", "source")


@dataclass(frozen=True, slots=True)
class Rate:
    usd_per_hour: float
    source: str  # where it comes from, for people

    def of(self, seconds: float) -> float:
        """USD."""
        return self.usd_per_hour * seconds / 3600


@dataclass(frozen=True, slots=True)
class Prices:
    rows: list[dict[str, str]]

    def paid(self, machine: Mapping[str, Json]) -> Rate | None:
        """What this machine and those that share its run's batches cost in an hour; None: unknown."""
        return _together([self._paid(one) for one in machines(machine)])

    def on_demand(self, machine: Mapping[str, Json]) -> Rate | None:
        """What the same machines cost that no cloud takes away; None: unknown."""
        return _together([self._on_demand(one) for one in machines(machine)])

    def _paid(self, machine: Mapping[str, Json]) -> Rate | None:
        price = machine.get("price_per_hour")
        if isinstance(price, int | float) and type(price) is not bool and 0 <= price < 1e9:
            return Rate(float(price), "given by --price-per-hour")
        match machine.get("spot"):
            case True:
                return self._find(machine, "spot", "paid")
            case False:
                return self._find(machine, "on-demand", "paid")
            case _:
                return self._find(machine, "paid")

    def _on_demand(self, machine: Mapping[str, Json]) -> Rate | None:
        return self._paid(machine) if machine.get("spot") is False else self._find(machine, "on-demand")

    def _find(self, machine: Mapping[str, Json], *kinds: str) -> Rate | None:
        """The first kind's row for the machine's region, else the one for any."""
        for kind in kinds:
            for region in (machine.get("region") or "", ""):
                for row in self.rows:
                    wanted = (machine.get("cloud"), machine.get("instance_type"), region, kind)
                    if (row["cloud"], row["instance_type"], row["region"], row["kind"]) == wanted:
                        told = ", ".join(part for part in (row["kind"], row["date"], row["source"]) if part)
                        return Rate(float(row["usd_per_hour"]), f"price table: {told}")
        return None


def machines(machine: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """An attempt's: that of process 0, which keeps the records, and the others by its record."""
    others = machine.get("others")
    return [machine, *(one for one in others if isinstance(one, dict))] if isinstance(others, list) else [machine]


def _together(rates: Sequence[Rate | None]) -> Rate | None:
    """Unknown where one is: a part of a sum says nothing."""
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        return None
    sources = ", ".join(dict.fromkeys(rate.source for rate in known))
    return Rate(sum(rate.usd_per_hour for rate in known), sources)


def load(path: Path = TABLE) -> Prices:
    """Raises `UserError` for a file that can't be read or has a row that can't be understood."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{name: (row.get(name) or "").strip() for name in COLUMNS} for row in reader]
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"prices {path}: {getattr(e, 'strerror', None) or e}") from e
    if missing:
        raise UserError(f"prices {path}: the first line lacks {', '.join(missing)}")
    for number, row in enumerate(rows, 2):
        if row["kind"] not in KINDS:
            raise UserError(f"prices {path}, row {number}: kind {row['kind']!r:.40} is none of {', '.join(KINDS)}")
        try:
            good = 0 <= float(row["usd_per_hour"]) < math.inf
        except ValueError:
            good = False
        if not good:
            raise UserError(f"prices {path}, row {number}: {row['usd_per_hour']!r:.40} is no price")
    return Prices(rows)
