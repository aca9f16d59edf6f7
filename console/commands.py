"""The command line's names: jobs and commands as one list, a wrong name led to the right one."""

from __future__ import annotations

import difflib

import click

from trainer.names import job_names


class Commands(click.Group):
    """Jobs and commands in one namespace; a wrong name gets the nearest right one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands:
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(self.commands)}"
            raise click.UsageError(f"no job or command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        jobs = job_names()
        for title, names in (("Jobs", jobs), ("Commands", [n for n in self.commands if n not in jobs])):
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])


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
