"""docs/reference.md from the code: `python make/reference.py` prints it. A test holds the file to what this prints."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import fields
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from console.commands import Commands, known_variables
from entrypoint import baton
from trainer.exits import MEANINGS, ExitCode
from trainer.names import job_names, presets_of, summary
from trainer.settings import Settings, choices, kind

HEAD = """# Reference

Made from the code by `make reference`; a test fails where the two differ. What the words mean and how the parts hang
together: [architecture.md](architecture.md).

Where a setting comes from, the first that is there: the flag, the variable in the environment, the job's preset, the
default. In manifests and JSON it has its own name: `checkpoint_every`.
"""

EXITS = """
## Exit codes

Whoever restarts containers goes by these; launch/ has the files that do ([launch.md](launch.md)).
`--preempted-exit-code` changes 75, `--superseded-exit-code` the 0 of a superseded copy.

| code | means | whoever restarts containers should |
| --- | --- | --- |
"""


def commands() -> str:
    """Jobs and commands, each with the options that are its own."""
    assert isinstance(baton, Commands)
    lines = ["\n## Jobs\n", "| job | trains | presets, the first is the default |", "| --- | --- | --- |"]
    lines += [f"| `{job}` | {summary(job)} | {', '.join(f'`{p}`' for p in presets_of(job))} |" for job in job_names()]
    lines += ["\nAll take every setting below, and `--allow-change SETTING` (`BATON_ALLOW_CHANGE`): go on with another",
              "value of a setting than the run has had.", "\n## Commands\n"]  # fmt: skip
    lines += [f"- `{p.opts[0]}`: {told}\n" for p in baton.params if (told := getattr(p, "help", None))]
    for name in baton.others():
        command = baton.commands[name]
        arguments = [p.make_metavar(click.Context(command)) for p in command.params if isinstance(p, click.Argument)]
        lines.append(f"### {' '.join([name, *arguments])}\n")
        lines.append(inspect.cleandoc(command.help or "") + "\n")
        shared = [f.name for f in fields(Settings)]
        own = [p for p in command.params if isinstance(p, click.Option) and p.name not in shared]
        taken = [p for p in command.params if isinstance(p, click.Option) and p.name in shared]
        lines += [f"- `{p.opts[0]}`: {p.help}" for p in own]
        if taken:
            lines.append(f"- settings: {', '.join(f'`{p.opts[0]}`' for p in taken)}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def settings() -> str:
    """Every setting."""
    lines = ["\n## Settings\n", "A run goes on only with the same values of those marked *run*.\n"]
    lines += ["| flag and variable | default | what |", "| --- | --- | --- |"]
    for f in fields(Settings):
        flag, variable = "--" + f.name.replace("_", "-"), "BATON_" + f.name.upper()
        values = " ".join(f"`{v}`" for v in choices(f.name)) or ("" if kind(f.name) is bool else kind(f.name).__name__)
        unset = f.default in ("", 0, False) or f.default != f.default
        default = "" if unset and f.name not in ("seed", "superseded_exit_code") else f"`{_shown(f.default)}`"
        what = f"{f.metadata['help']}{'; *run*' if f.metadata['shapes_run'] else ''}".replace("|", "\\|")
        lines.append(f"| `{flag}` {values} <br> `{variable}` | {default} | {what} |")
    return "\n".join(lines) + "\n"


def variables() -> str:
    """What the environment alone can say."""
    lines = ["\n## Variables without a flag\n", "| variable | what |", "| --- | --- |"]
    lines += [f"| `{name}` | {what} |" for name, what in known_variables().items()]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}"
    return str(int(value)) if isinstance(value, ExitCode) else str(value)


def page() -> str:
    exits = EXITS + "".join(f"| {code:d} | {means} | {do} |\n" for code, (means, do) in MEANINGS.items())
    return HEAD + commands() + settings() + variables() + exits


if __name__ == "__main__":
    sys.stdout.write(page())
