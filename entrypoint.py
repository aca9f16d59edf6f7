"""Baton's command line: settings in, exit code out. What is heavy is imported only where it is used."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # before the slower imports: whoever is told to go by then has nothing to save

    def leave(*_: object) -> None:
        """With the exit code that --preempted-exit-code says, though nothing has read the command line yet."""
        flag, said = "--preempted-exit-code", os.environ.get("BATON_PREEMPTED_EXIT_CODE", "")
        for before, argument in zip(sys.argv, sys.argv[1:], strict=False):
            if before == flag or argument.startswith(f"{flag}="):
                said = argument.removeprefix(f"{flag}=")
        os._exit(int(said) if len(said) <= 3 and said.isascii() and said.isdecimal() else 75)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    import click
except ModuleNotFoundError as e:  # the system's own Python, most likely
    if __name__ != "__main__" or e.name != "click":
        raise
    sys.stderr.write(
        f"{sys.executable or 'this Python'} lacks click: `make cifar10` sets up .venv; use .venv/bin/python\n"
    )
    sys.exit(78)

from console import defects, logs
from console.commands import (
    DATA,
    Commands,
    Unwritten,
    help_command,
    options,
    program,
    show_version,
    those_given,
    variable_of,
    wants_json,
    warn_of_taken_names,
    warn_of_unknown_variables,
    where_more_is_said,
)
from storage import Store, open_store
from storage.errors import StoreError, Transient
from storage.retry import Retrying
from trainer import ranks
from trainer.exits import ExitCode, UserError
from trainer.names import dataset_of, job_names, presets_of, summary
from trainer.settings import Settings, fields_of

log = logging.getLogger("baton")

COMMAND_TRY_S = 30.0  # how long a store that is away is waited for


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="the commit of this program",
)
@click.pass_context
def baton(ctx: click.Context) -> None:
    """Train a model on cheap machines that may go at any time, and never lose the place.

    Start the same line again, here or elsewhere, and it goes on from the newest checkpoint in the store.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def job_command(name: str) -> click.Command:
    def call(allow_change: tuple[str, ...], **values: Any) -> int:
        from console.train import train

        return train(name, those_given(values), allow_change, [__file__, *click.get_current_context().find_root().obj])

    presets = ", ".join(presets_of(name))
    about = f"Train, or go on training. {summary(name)}.\n\nPresets, the first where none is given: {presets}."
    command = click.Command(name, callback=call, short_help=summary(name), help=about)
    command.params.append(
        click.Option(
            ["--allow-change"],
            multiple=True,
            envvar="BATON_ALLOW_CHANGE",
            metavar="SETTING",
            help="go on with another value of this setting than the run has had",
        )
    )
    return options([f.name for f in fields_of()])(command)


def patient_store(url: str) -> Store:
    """A store for a command: its passing faults are tried again for half a minute."""
    return Retrying(open_store(url), lambda tried: COMMAND_TRY_S - tried, time.sleep)


@options(["store", "run"])
@baton.command(short_help="the runs in the store, and how each stands")
@click.option("--json", "as_json", is_flag=True, help="as JSON, a list of runs")
@click.option("--watch", is_flag=True, help="look again every 5 s, until q or Ctrl-C")
def status(store: str | None, run: str | None, as_json: bool, watch: bool) -> int:
    """Show the runs in the store: how far, how saved, how ended. With --run, that one and its attempts."""
    from console.status import show

    settings = Settings(**those_given({"store": store, "run": run}))
    return show(patient_store(settings.store), settings.run or None, as_json=as_json, follow=watch)


@options(["store", "run", "keep"])
@baton.command(short_help="delete checkpoints that the rules no longer keep; says first, --yes does")
@click.option("--yes", is_flag=True, help="delete; without it, only say what would be deleted")
def clean(store: str | None, run: str | None, keep: int | None, yes: bool) -> int:
    """Delete what is no longer kept, of one run or of all; a running copy does so by itself, every 10 minutes.

    Kept are the newest good checkpoints, by the store's clock the newest attempt's of the last hour and others' of the
    last 24, all that these and the result need, and every attempt's record and metrics. Safe while the run goes on.
    """
    from console.clean import clean as clean_up

    settings = Settings.of(those_given({"store": store, "run": run, "keep": keep}))
    return clean_up(patient_store(settings.store), settings.run or None, settings.keep, yes=yes)


@options(["store", "run", "halt", "cloud"])
@baton.command(short_help="is this machine ready to train, and what mends it if not")
@click.option("--json", "as_json", is_flag=True, help="as JSON, a list of checks")
@click.option(
    "--seconds",
    type=click.FloatRange(4, 3600),
    default=15.0,
    help="all it may take; 15 if not given",
)
def doctor(as_json: bool, seconds: float, **values: Any) -> int:
    """Look at all that training needs, and say how to mend what fails. Takes 15 seconds at most.

    The store is really written to: under .baton-doctor/, up to 67 MB within a second and a half to measure its speed,
    or else 9 MB more for an upload in parts, all of it deleted again. Exit code 0, or 78 if a check failed.
    """
    from console.checks.examination import Patient
    from console.doctor import doctor as examine

    settings = Settings.of(those_given(values))
    patient = Patient(
        settings.store,
        run=settings.run,
        halt=settings.halt,
        data=DATA,
        weights=DATA.parent / "weights",
        cloud=settings.cloud,
        environment=os.environ,
    )
    return examine(patient, seconds, as_json=as_json)


@options(["run"])
@baton.command(short_help="copy a run to another store, verified")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
def copy(source: str, target: str, run: str | None) -> int:
    """Copy a run from the store SRC to the store DST, every byte checked; there it goes on as if it had always been.

    What is killed in the midst is finished by the same command; until then the copy can't be started. Refused where DST
    has a run of this name with another history. SRC is left as it is. Parts larger than 8 MB go one at a time through
    a file in TMPDIR.
    """
    from console.copy import copy_run

    settings = Settings.of(those_given({"run": run}))
    return copy_run(patient_store(source), patient_store(target), named(settings))


@options(["store", "run"])
@baton.command(short_help="delete a run whole; says first, --yes does")
@click.option("--yes", is_flag=True, help="delete; without it, only say what would be deleted")
def delete(store: str | None, run: str | None, yes: bool) -> int:
    """Delete a run with all that it has: checkpoints, metrics, result and records.

    A run that gave a sign of life in the last 90 seconds is refused: whoever trains it would go on saving. What is
    killed in the midst is finished by the same command; until then the run can't be started.
    """
    from console.delete import delete_whole

    settings = Settings.of(those_given({"store": store, "run": run}))
    return delete_whole(patient_store(settings.store), named(settings), yes=yes)


@options(["store", "run"])
@baton.command(short_help="check every checkpoint of a run down to its bytes")
@click.option("--json", "as_json", is_flag=True, help="as JSON, a list of checkpoints")
def verify(store: str | None, run: str | None, as_json: bool) -> int:
    """Read all that a run's checkpoints name and check it.

    Exit code 0 if all are good, 78 if not, or if a copy or a deletion of the run was left unfinished.
    """
    from console.verify import show

    settings = Settings.of(those_given({"store": store, "run": run}))
    return show(patient_store(settings.store), settings.run or None, as_json=as_json)


@options(["store"])
@baton.command(short_help="the bill and the relay of runs, as a page, pictures and tables")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="folder to write to")
@click.option("--run", "runs", multiple=True, metavar="NAME", help="a run; several times for several side by side")
@click.option("--prices", type=click.Path(path_type=Path, dir_okay=False), help="your own price table, CSV")
@click.option("--tensorboard", is_flag=True, help="TensorBoard's event files too, in DIR/tensorboard")
def report(store: str | None, out: Path, runs: tuple[str, ...], prices: Path | None, tensorboard: bool) -> int:
    """Show who did which steps on which machine, for how long and for how much; of all runs if none is named.

    Writes DIR/report.html, which needs no network, and the same figures and pictures as CSV and PNG beside it.
    """
    from console.report import report as make

    settings = Settings.of(those_given({"store": store}))
    for name in runs:
        Settings.of({"run": name})  # is it a run's name?
    return make(patient_store(settings.store), list(runs), out, prices, tensorboard=tensorboard)


@options(["store", "run"])
@baton.command(short_help="stop a run from anywhere, through its store")
def halt(store: str | None, run: str | None) -> int:
    """Ask the copy that trains a run now to stop: within 30 s it saves its state and exits with 0.

    It holds for that copy alone; whoever starts the run again goes on with it.
    """
    from console.halt import halt as ask

    settings = Settings.of(those_given({"store": store, "run": run}))
    return ask(patient_store(settings.store), named(settings))


def named(settings: Settings) -> str:
    """The run that a command is about. Raises `UserError` (wrong command line) where none is named."""
    if not settings.run:
        raise UserError("which run? give --run NAME; `status` lists those there are", ExitCode.USAGE)
    return settings.run


def known(job: str) -> str:
    """The job of this name. Raises `UserError` (wrong command line) where there is none."""
    if job not in job_names():
        raise UserError(f"no job {job!a:.60}; there are: {', '.join(job_names())}", ExitCode.USAGE)
    return job


@options(["model", "size", "strict", "halt"])
@baton.command(short_help="fetch or read a job's data, check it, pack it")
@click.argument("job")
@click.option("--source", help="archive, folder, tar, file, URL, or `synthetic`")
@click.option("--out", type=click.Path(path_type=Path), help="folder for the packed data; data/JOB if not given")
def data(job: str, source: str | None, out: Path | None, halt: str | None, **values: Any) -> int:
    """Pack the data of JOB: once, checked, into one file that every start maps into memory."""
    from console.whole import whole_or_not

    dataset, chosen = dataset_of(known(job)), those_given(values)
    settings = Settings.of({**chosen, **those_given({"halt": halt})})
    if dataset is None:
        raise UserError(f"{job} takes no data: its DATASET is None", ExitCode.USAGE)

    def work(check: Callable[[], None]) -> None:
        from trainer.data.pack import pack

        pack(dataset, source, out or DATA / dataset, options=chosen, check=check, say=log.info)

    return whole_or_not(settings, "packing", work)


@options(["model", "halt"])
@baton.command(short_help="get a network's published weights, check them, keep them")
@click.argument("job")
@click.option("--source", help="the published file, or another address of it")
@click.option("--out", type=click.Path(path_type=Path), help="folder to keep them in; weights/ if not given")
@click.option("--check", is_flag=True, help="get none: see whether those that are kept are whole, bert's too")
def weights(job: str, source: str | None, out: Path | None, check: bool, model: str | None, halt: str | None) -> int:
    """Get the weights that --weights imagenet means for a network: once, checked by the SHA-256 in their name."""
    from console.whole import whole_or_not

    settings = Settings.of(those_given({"model": model, "halt": halt}))

    def work(stopped: Callable[[], None]) -> None:
        from trainer import weights as those

        if check:
            those.examine(known(job), model or "", out or those.BAKED, stopped)
        else:
            those.get(those.published(known(job), model or ""), source, out or those.BAKED, stopped, log.info)

    return whole_or_not(settings, "fetching", work)


baton.add_command(help_command)
baton.build_job = job_command


def main(arguments: list[str]) -> int:
    form = "json" if wants_json(arguments) else "text"
    logs.set_up(form, debug=bool(os.environ.get("BATON_DEBUG")), aside="--json" in arguments)
    if ranks.speaks_first(os.environ):
        warn_of_unknown_variables()
        warn_of_taken_names()
    try:
        return baton.main(arguments, prog_name=program(), standalone_mode=False, obj=arguments) or ExitCode.DONE
    except click.UsageError as e:
        log.error("%s%s (%s)", variable_of(e), e.format_message().rstrip("."), where_more_is_said(e))
        return ExitCode.USAGE
    except UserError as e:
        log.error("%s", e)
        return e.code
    except StoreError as e:
        log.error("%s", e)
        return ExitCode.NOT_DURABLE if isinstance(e, Transient) else ExitCode.SETUP
    except click.Abort as e:
        if isinstance(e.__cause__, EOFError):  # which click takes for a person's wish too; it is a file's untimely end
            return _defect(e.__cause__)
        return ExitCode.INTERRUPTED
    except Unwritten as e:
        if e.is_unread:  # `| head`
            return ExitCode.UNREAD
        with suppress(OSError):
            sys.stderr.write(f"error: standard output can't be written to: {e}\n")
        return ExitCode.SETUP
    except Exception as e:
        return _defect(e)


def _defect(error: Exception) -> int:
    if (line := defects.unusable_python(error)) is not None:
        log.error("%s", line)
        return ExitCode.SETUP
    log.error("this is %s; the run's checkpoints are safe", defects.whose(error), exc_info=error)
    return ExitCode.DEFECT


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logs.keep_streams()
    code = main(sys.argv[1:])
    logging.shutdown()
    with suppress(OSError):  # nobody may be reading any more
        sys.stdout.flush()
    # at once: an exit in good order would wait for what a store's library still has on its way, beyond any deadline
    os._exit(code)
