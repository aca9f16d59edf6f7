"""What an evaluation comes to beyond a mean: the confusion matrix, and the scores that follow from it."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.settings import Json

MOST_CONFUSED = 20  # classes, beyond which nobody reads a confusion matrix
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
