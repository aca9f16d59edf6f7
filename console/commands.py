"""How the command line is read: jobs and commands as one list of names, settings as options and variables."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from trainer.exits import UserError
from trainer.names import COMMANDS, job_names, unreachable
from trainer.settings import choices, fields_of, kind

log = logging.getLogger("baton")

SCRIPT = "python entrypoint.py"
DATA = Path(__file__).parents[1] / "data"  # packed, a folder for each job
_BEGIN = (
    ("doctor", "is this machine ready, and what mends it if not"),
    ("cifar10", "train; Ctrl-C stops it, the same line goes on"),
    ("status", "how far it is; --watch follows it"),
    ("help cifar10", "every option"),
)


class Unwritten(Exception):
    """What was asked for can't be written to standard output. No OSError: of these click makes an end of its own."""

    def __init__(self, why: OSError) -> None:
        super().__init__(why.strerror or str(why))
        self.is_unread = isinstance(why, BrokenPipeError)


@contextmanager
def written() -> Iterator[None]:
    """Raises `Unwritten` where it is standard output that an error came from: it takes no empty line either.

    Only the system's own errors that name no file can be its: a store's have no number.
    """
    try:
        yield
    except OSError as e:
        if e.errno is not None and e.filename is None:
            finish("\n")
        raise


def finish(rest: str = "") -> None:
    """Write all that standard output has yet to write. Raises `Unwritten`."""
    try:
        sys.stdout.write(rest)
        sys.stdout.flush()
    except OSError as e:
        raise Unwritten(e) from e


class Commands(click.Group):
    """Jobs and commands in one namespace; a wrong name gets the nearest right one.

    A job's command is made when it is asked for: to read all jobs' presets takes longer than many a command.
    """

    build_job: Callable[[str], click.Command]

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with written():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with written():
            code = super().invoke(ctx)
        if ctx.invoked_subcommand not in job_names():  # a run is more than what is said of it
            finish()
        return code

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*job_names(), *self.others()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in job_names():
            self.add_command(self.build_job(cmd_name))
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise click.UsageError(f"no job or command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def others(self) -> list[str]:
        return [name for name in COMMANDS if name in self.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in (("Jobs", job_names()), ("Commands", self.others())):
            with formatter.section(title):
                formatter.write_dl([(name, self._told(ctx, name)) for name in names])

    def _told(self, ctx: click.Context, name: str) -> str:
        """A command in a line; of a job that one is just writing, what is wrong with it."""
        try:
            command = self.get_command(ctx, name)
        except UserError as e:
            return f"({e})"
        return command.get_short_help_str(90) if command is not None else ""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("To begin"):
            formatter.write_dl(list(_BEGIN))


@click.command("help", short_help="this list, or what a job or command can do")
@click.argument("name", required=False)
@click.pass_context
def help_command(ctx: click.Context, name: str | None) -> None:
    """As --help says it, for whoever tries the plain word first."""
    about, group = ctx.find_root().command, ctx.find_root()
    if name is not None:
        assert isinstance(about, Commands)
        about = about.resolve_command(group, [name])[1] or about
        group = click.Context(about, info_name=name, parent=group)
    click.echo(about.get_help(group))


def options(names: list[str]) -> Callable[[click.Command], click.Command]:
    """Command-line options for these settings, each with its variable in the environment."""

    def add(command: click.Command) -> click.Command:
        for f in fields_of(names):
            values, flag = choices(f.name), kind(f.name) is bool
            command.params.append(
                click.Option(
                    ["--" + f.name.replace("_", "-")],
                    type=click.Choice(values) if values else kind(f.name),
                    is_flag=flag,
                    default=None,  # not given, so that the preset decides
                    envvar="BATON_" + f.name.upper(),
                    help=f.metadata["help"],
                    metavar=None if values or flag else kind(f.name).__name__.upper(),
                )
            )
        return command

    return add


def those_given(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that the command line or the environment has."""
    return {name: value for name, value in values.items() if value is not None}


def wants_json(arguments: list[str]) -> bool:
    """Whether log lines shall be JSON; asked before the command line is understood, so that its errors are too."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--log=") or (argument == "--log" and i + 1 < len(arguments)):
            return (argument.partition("=")[2] or arguments[i + 1]) == "json"
    return os.environ.get("BATON_LOG") == "json"


def version() -> str:
    """The commit that this is of, as far as anything here knows."""
    root = DATA.parent
    if revision := os.environ.get("BATON_REVISION"):
        return revision
    if (root / ".git").exists():
        import subprocess

        with suppress(OSError):
            git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
            if told := subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip():
                return told
    return "unknown"


def show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"baton {version()}")
        ctx.exit()


def program() -> str:
    """What stands before the words that this command line reads."""
    if "BATON_REVISION" not in os.environ:
        return SCRIPT
    return 'docker run --rm [--gpus all] --user "$(id -u):$(id -g)" -v "$PWD/halt:/halt" -v "$PWD/store:/store" IMAGE'


def where_more_is_said(error: click.UsageError) -> str:
    """Which help is about what was typed wrongly."""
    name = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else None
    return f"`{name} --help` shows all its options" if name else "`help` shows all there is"


def variable_of(error: click.UsageError) -> str:
    """Where a wrong value came from, if it was the environment."""
    parameter = getattr(error, "param", None)
    if not isinstance(parameter, click.Option) or error.ctx is None:
        return ""
    source = error.ctx.get_parameter_source(parameter.name or "")
    return f"{parameter.envvar}: " if source is click.core.ParameterSource.ENVIRONMENT else ""


def known_variables() -> dict[str, str]:
    """Variables of the environment that no option has, and what they are for."""
    metadata = "where {}'s metadata service is, http://169.254.169.254 if not given; for tests"
    return {
        "BATON_STOP_GRACE": "seconds between a SIGTERM and the kill that follows; 10, as docker's own, if not given",
        "BATON_GCP_NOTICE": "seconds from a Google VM's `preempted` to its end; 30 if not given",
        "BATON_IDENTITY": "google, azure or aws: log in to another cloud's store as this machine of that cloud",
        "BATON_IDENTITY_AUDIENCE": "for whom the machine's token is, where it isn't whom the store's cloud expects",
        "BATON_DEBUG": "1: show every save",
        "BATON_REVISION": "set in the image: the commit that it was built from",
        "BATON_AWS_METADATA": metadata.format("AWS"),
        "BATON_GCP_METADATA": metadata.format("Google"),
        "BATON_AZURE_METADATA": metadata.format("Azure"),
        "BATON_TEST_DATA": "where tests look for real pictures",
    }


def warn_of_unknown_variables() -> None:
    known = {"BATON_" + f.name.upper() for f in fields_of()} | known_variables().keys() | {"BATON_ALLOW_CHANGE"}
    for name in sorted(os.environ):
        if name.startswith("BATON_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            log.warning(
                "environment variable %s means nothing here%s", name, f"; did you mean {near[0]}?" if near else ""
            )


def warn_of_taken_names() -> None:
    for file in unreachable():
        log.warning("%s is no job here: `%s` is a command; give the file another name", file, Path(file).stem)


def stop_grace_s() -> float:
    """Seconds between a SIGTERM and the kill that follows; docker's own by default."""
    text = os.environ.get("BATON_STOP_GRACE", "10")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 86400:
        raise UserError(f"BATON_STOP_GRACE={text}: must be a number of seconds, for example 10")
    return seconds
