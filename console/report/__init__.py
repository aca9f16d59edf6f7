"""The `report` command: the bill and the relay of runs, as a page, pictures and tables in one folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from storage import Store
from trainer.exits import ExitCode, UserError
from trainer.history import History
from trainer.ledger import Ledger, account
from trainer.place import none_of, runs
from trainer.records import read

if TYPE_CHECKING:
    from console.report.prices import Prices


def report(store: Store, names: list[str], out: Path, prices: Path | None, *, tensorboard: bool = False) -> int:
    """Write it. No `names`: of all runs. Raises `UserError`, `StoreError`."""
    from console.report import prices as table

    priced = table.load(prices) if prices else table.load()
    _make(out)
    ledgers = ledgers_of(store, names)
    files = _files(ledgers, priced, store.url)
    for name, content in files.items():
        try:
            (out / name).write_bytes(content)
        except OSError as e:
            raise UserError(f"{out / name} can't be written: {e.strerror}") from e
    if tensorboard:
        _write_curves(ledgers, out / "tensorboard")
    told = f"{len(ledgers)} runs" if len(ledgers) > 1 else f"run {ledgers[0].run}"
    print(f"{told}: {out / 'report.html'}, and beside it {', '.join(n for n in files if n != 'report.html')}")
    return ExitCode.DONE


def ledgers_of(store: Store, names: list[str]) -> list[Ledger]:
    """Raises `UserError` where there is none, or not each of those asked for."""
    found = []
    for name in list(dict.fromkeys(names)) or runs(store):
        records = read(History(store, name))
        if records is not None:
            found.append(account(records))
        elif names:
            raise UserError(none_of(store, name))
    if not found:
        raise UserError(none_of(store))
    return found


def _make(out: Path) -> None:
    """Before anything is read: a folder that can't be written to is told at once."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".baton-report"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"--out {out}: can't be written to: {e.strerror}") from e


def _write_curves(ledgers: list[Ledger], folder: Path) -> None:
    from console.tensorboard import Curves

    for ledger in ledgers:
        try:
            curves = Curves(folder, ledger.run)
            curves.tell(ledger)
            curves.close()
        except OSError as e:
            raise UserError(f"{folder} can't be written to: {e.strerror}") from e


def _files(ledgers: list[Ledger], prices: Prices, url: str) -> dict[str, bytes]:
    """Name -> content."""
    from console.report import comparison, page, picture, tables

    rows = [row for ledger in ledgers for row in tables.attempts(ledger, prices)]
    files = {
        "report.html": page.render(ledgers, prices, url, time.time()).encode(),
        "runs.csv": tables.as_csv(tables.runs(ledgers, prices)).encode(),
        "attempts.csv": tables.as_csv(rows).encode(),
    }
    for ledger in ledgers:
        files[f"relay-{ledger.run}.png"] = picture.palette_png(picture.relay(ledger, form="png", titled=True))
    if len(ledgers) > 1 and (side_by_side := comparison.picture(ledgers, prices, form="png")) is not None:
        files["runs.png"] = picture.palette_png(side_by_side)
    return files
