"""What an evaluation comes to beyond a mean: the confusion matrix, and the scores that follow from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.settings import Json

Metric = float | list[Json]  # a number, or a table as a list of rows of whole numbers


def confusion(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often class i was taken for class j: int64 [classes, classes], rows the truth. `labels`: int64 [n]."""
    cells = labels * classes + logits.argmax(1)
    # not bincount, which has no deterministic way on a GPU
    one_hot = torch.zeros(len(cells), classes * classes, dtype=torch.int64, device=cells.device)
    return one_hot.scatter_(1, cells[:, None], 1).sum(0).view(classes, classes)


def of_confusion(matrix: Tensor) -> dict[str, Metric]:
    """Accuracy, macro F1 and the table itself.

    Macro F1 is the mean over classes of F1 = 2 TP / (2 TP + FP + FN); a class that is neither there nor ever guessed
    counts 0, as in scikit-learn's `f1_score(average="macro", zero_division=0)` with every class given.
    """
    cells = matrix.double().cpu()
    right = cells.diagonal()
    f1 = 2 * right / (cells.sum(0) + cells.sum(1)).clamp(min=1)
    return {
        "accuracy": float(right.sum() / cells.sum()),
        "macro_f1": float(f1.mean()),
        "confusion": cells.long().tolist(),
    }


def table(matrix: Json, classes: Sequence[str]) -> list[str]:
    """A confusion matrix for people, as lines; none where there is no such matrix, or it is too wide to read."""
    if not isinstance(matrix, list) or not 0 < len(matrix) == len(classes) <= 12:
        return []
    rows = [list(map(str, row)) for row in matrix if isinstance(row, list)]
    names = [name if len(name) <= 16 else f"{name[:13]}..." for name in classes]
    left = max(map(len, names))
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(names)]
    head = "  ".join(name.rjust(width) for name, width in zip(names, widths, strict=True))
    lines = [f"{'taken for':<{left}}  {head}"]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<{left}}  " + "  ".join(n.rjust(width) for n, width in zip(row, widths, strict=True)))
    return lines
