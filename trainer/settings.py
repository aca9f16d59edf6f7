"""Every setting, once: its name, type, help and range. The command line, the environment and manifests follow.

A setting `lr` is `--lr` on the command line, `BATON_LR` in the environment and `lr` in manifests and JSON.
What wins, in this order: flag, environment, the job's preset, the default here.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from trainer import ranks
from trainer.cadence import Cadence
from trainer.exits import ExitCode, UserError
from watchers import drill

Json = bool | int | float | str | None | list["Json"] | dict[str, "Json"]


# what a manifest can hold and a start reads back: more would be trained for nothing
LARGEST_FLOAT = 3.4e38  # torch computes with it in single precision
LARGEST_COUNT = 10**12


def setting(
    default: Any, text: str, *, shapes_run: bool = False, low: float | None = None, above: float | None = None
) -> Any:
    """One setting. `shapes_run`: it decides what the run computes, so a resumed run must have the same one."""
    return field(default=default, metadata={"help": text, "shapes_run": shapes_run, "low": low, "above": above})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All settings of one container. "", 0 and NaN as defaults mean: not given, so the preset decides."""

    store: str = setting(
        "file://./store", "where runs live: gs://..., s3://..., az://..., or a folder: file:///folder, file://./folder"
    )
    run: str = setting("", "name of the run; the job's name if not given")
    data: str = setting("", "packed folder, archive, image folder, tar or URL; data/JOB if not given")
    halt: str = setting("/halt", "folder to look in for a file `halt` or `preempt.txt`")
    preset: str = setting("", "the job's named set of settings; its first one if not given", shapes_run=True)
    model: str = setting("", "network, by the job's names, or for bert a folder", shapes_run=True)
    weights: str = setting(
        "", "weights to begin with: none (chance), imagenet, a file, or a finished run's URL", shapes_run=True
    )
    freeze: bool = setting(False, "train the last layer alone; the rest stays as --weights has it", shapes_run=True)
    size: int = setting(0, "side of the pictures that the network sees, in pixels", shapes_run=True, low=8)
    train_size: int = setting(
        0, "the same in training; for imagenet it grows from half to 3/4 of --size if not given", shapes_run=True, low=8
    )
    strict: bool = setting(False, "a broken picture, or a class without test pictures, stops packing")
    optimizer: Literal["auto", "sgd", "adamw"] = setting(
        "auto", "for imagenet; auto: adamw for networks with layer norms, sgd for others", shapes_run=True
    )
    epochs: int = setting(0, "passes over the training data", shapes_run=True, low=1)
    steps: int = setting(0, "length of the run in steps, whatever --epochs says", shapes_run=True, low=1)
    batch_size: int = setting(0, "samples in a step (the global batch)", shapes_run=True, low=1)
    micro_batch_size: int = setting(
        0,
        "samples computed at once; gradients add up to the batch; a process's whole share if not given",
        shapes_run=True,
        low=1,
    )
    lr: float = setting(math.nan, "peak learning rate", shapes_run=True, above=0)
    momentum: float = setting(math.nan, "momentum", shapes_run=True, low=0)
    weight_decay: float = setting(math.nan, "weight decay", shapes_run=True, low=0)
    dropout: float = setting(
        0.0,
        "share of activations dropped before the last layer; for imagenet 0 leaves the network's own",
        shapes_run=True,
        low=0,
    )
    seed: int = setting(0, "seed of data order, augmentation, initial weights, dropout", shapes_run=True, low=0)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "bf16 autocast or fp32; auto: bf16 where that is faster, and as the run began", shapes_run=True
    )
    no_deterministic: bool = setting(
        False, "compute as is fastest: last bits may differ from one time to the next", shapes_run=True
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where to compute")
    nproc: str = setting("1", "processes that share each batch: a number, or auto, one for each GPU")
    checkpoint_every: str = setting("auto", "how often to save: 30s, 5m, 200steps, 1epoch, or auto: as often as pays")
    keep: int = setting(3, "how many good checkpoints to keep; those of the last hour stay anyhow")
    cloud: Literal["auto", "aws", "gcp", "azure", "none"] = setting(
        "auto", "whose machine this is, so whose notices are watched for; auto: found out"
    )
    drill: str = setting("", "rehearse evictions: aws@300s,gcp@5m,azure@1h; a cloud's notice so long after the start")
    log: Literal["auto", "text", "json"] = setting(
        "auto", "text, or one JSON object a line; auto: a live display on a terminal, else text"
    )
    tensorboard: str = setting("", "folder for TensorBoard's event files: one curve over all attempts of the run")
    instance_type: str = setting("", "this machine's type, for the ledger; what its cloud says if not given")
    price_per_hour: float = setting(math.nan, "what this machine costs in an hour, for the ledger", low=0)
    preempted_exit_code: int = setting(int(ExitCode.PREEMPTED), "exit code when told to go by the machine", low=0)
    superseded_exit_code: int = setting(int(ExitCode.DONE), "exit code when a newer copy took the run over", low=0)

    def __post_init__(self) -> None:
        """Raises `UserError` (wrong command line)."""
        for f in fields(self):
            value = getattr(self, f.name)
            if value == value and value != f.default:
                check(f.name, value)

    @classmethod
    def of(cls, given: Mapping[str, Any], preset: Mapping[str, Any] | None = None) -> Settings:
        """The user's settings, the preset's where they say nothing. Raises `UserError` (wrong command line)."""
        for name, value in given.items():
            check(name, value)
        return cls(**{**(preset or {}), **given})

    def that_shape_the_run(self) -> dict[str, Json]:
        """What a resumed run must have in common with the run so far; JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["shapes_run"]}
        return {name: None if value != value else value for name, value in values.items()}


def check(name: str, value: Any) -> None:
    """Raise `UserError` (wrong command line) if a setting's value is out of its range."""
    f = next(f for f in fields(Settings) if f.name == name)
    flag = "--" + name.replace("_", "-")
    low, above = f.metadata["low"], f.metadata["above"]
    if value == "":  # as "$W" is where nobody set W; to go on would be to choose something for whoever set nothing
        raise UserError(f"{flag}: what is given is empty; give a value or leave it out", ExitCode.USAGE)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag} {value}: must be a finite number", ExitCode.USAGE)
    if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
        raise UserError(f"{flag} {value}: must be {LARGEST_FLOAT} or less", ExitCode.USAGE)
    if isinstance(value, int) and value > LARGEST_COUNT and name != "seed":
        raise UserError(f"{flag}: must be {LARGEST_COUNT} or less", ExitCode.USAGE)
    if isinstance(value, str) and (f.metadata["shapes_run"] or name == "instance_type") and not _is_text(value):
        raise UserError(f"{flag} {value!a:.200}: is not text in UTF-8", ExitCode.USAGE)
    if low is not None and value < low:
        raise UserError(f"{flag} {value}: must be {low} or more", ExitCode.USAGE)
    if above is not None and value <= above:
        raise UserError(f"{flag} {value}: must be more than {above}", ExitCode.USAGE)
    if name == "dropout" and value >= 1:
        raise UserError(f"{flag} {value}: must be less than 1", ExitCode.USAGE)
    if name == "seed" and value >= 1 << 63:
        raise UserError(f"{flag} {value}: must be less than 2^63", ExitCode.USAGE)
    if name.endswith("_exit_code") and value > 255:
        raise UserError(f"{flag} {value}: must be 255 or less", ExitCode.USAGE)
    if name == "keep" and value < 2:
        raise UserError(
            f"{flag} {value}: must be 2 or more: should the newest prove damaged, the one before it saves the run",
            ExitCode.USAGE,
        )
    if name == "nproc":
        ranks.wanted(value)
    if name == "checkpoint_every":
        Cadence.parse(value)
    if name == "drill":
        try:
            drill.parse(value)
        except ValueError as e:
            raise UserError(f"{flag} {e}", ExitCode.USAGE) from e
    if name == "run" and not is_run_name(value):
        raise UserError(
            f"{flag} {value!r}: a run's name has letters, digits, '.', '_' and '-', "
            "begins with a letter or digit, and is 100 characters long at most",
            ExitCode.USAGE,
        )


def changeable() -> list[str]:
    """What --allow-change may name."""
    return [f.name for f in fields(Settings) if f.metadata["shapes_run"]] + ["data_sha256", "network_sha256"]


def check_changes(names: Sequence[str]) -> None:
    """Raise `UserError` (wrong command line) where --allow-change names what is no setting of a run."""
    known = changeable()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            raise UserError(f"--allow-change {name!a:.60}: a run has no such setting; {hint}", ExitCode.USAGE)


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: a command line's bytes that are none become halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_run_name(name: str) -> bool:
    return (
        0 < len(name) <= 100 and name.isascii() and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name)
    )


def fields_of(names: Sequence[str] = ()) -> list[Field[Any]]:
    """The fields of these settings, or of all."""
    return [f for name, f in _fields().items() if not names or name in names]


def choices(name: str) -> tuple[str, ...]:
    """The values that a setting may have, or () where it is free."""
    return get_args(_types()[name])


@cache
def _fields() -> dict[str, Field[Any]]:
    return {f.name: f for f in fields(Settings)}


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Settings)  # 2 ms, which at each of a command line's options would be a fifth of a second


def kind(name: str) -> type:
    """int, float or str."""
    f = _fields()[name]
    assert f.default is not MISSING
    return type(f.default)


def difference(mine: Mapping[str, Json], theirs: Mapping[str, Json]) -> dict[str, tuple[Json, Json]]:
    """Setting -> (mine, the run's), where they are not the same."""
    names = sorted(mine.keys() | theirs.keys())
    return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}


def changes(odd: Mapping[str, tuple[Json, Json]]) -> str:
    """What `difference` found, in words: from theirs to mine."""
    return ", ".join(f"{name} {_short(name, theirs)} -> {_short(name, mine)}" for name, (mine, theirs) in odd.items())


def _short(name: str, value: Json) -> str:
    if name == "steps" and value == 0:
        return "those of its epochs"
    if value in ("", None):
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}...{text[-20:]}"
