"""Scores from a confusion matrix are those of their definitions."""

from __future__ import annotations

import math

import torch

from console.status import _metrics
from trainer.attempt import finite
from trainer.ending import table, told
from trainer.scores import confusion, of_confusion


def test_the_matrix_counts_each_sample_once_by_its_truth_and_its_guess() -> None:
    logits = torch.tensor([[2.0, 1, 0], [2, 1, 0], [0, 1, 0], [0, 0, 1]])
    matrix = confusion(logits, torch.tensor([0, 1, 1, 0]), 3)
    assert matrix.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_macro_f1_is_the_mean_over_classes_and_counts_one_that_never_was_as_zero() -> None:
    scores = of_confusion(torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]], dtype=torch.float64))
    assert scores["accuracy"] == 17 / 20
    assert scores["macro_f1"] == (16 / 19 + 18 / 21 + 0) / 3
    assert scores["confusion"] == [[8, 2, 0], [1, 9, 0], [0, 0, 0]]


def test_the_table_lines_up_and_what_is_no_matrix_gives_none() -> None:
    lines = table([[8, 1234], [1, 9]], ["cat", "hippopotamus amphibius"])
    assert lines[0].split() == ["taken", "for", "cat", "hippopotamus", "..."] or len({len(x) for x in lines}) == 1
    assert lines[1].split() == ["cat", "8", "1234"]
    assert table(None, ["a"]) == table([[1]], ["a", "b"]) == []


def test_a_metric_that_is_no_number_any_more_is_called_so() -> None:
    metrics = finite({"loss": math.nan, "accuracy": 0.5, "train_loss": math.inf})
    words = "loss not a number, accuracy 0.5000, train loss not a number"
    assert told({"step": 3, **metrics}) == words
    assert _metrics(metrics) == "loss not a number, accuracy 50.00 %"


def test_the_table_says_which_way_it_is_read_and_its_columns_stand_below_their_names() -> None:
    head, *rows = table([[3, 10], [0, 1]], ["cat", "a dog"])
    assert head == "truth | taken for  cat  a dog"
    assert rows == ["cat                  3     10", "a dog                0      1"]
