"""The generated stand-in for texts: sentences of made-up words, some of which a class uses oftener than the others.

All chance comes from SHAKE-128, so that the texts are the same on every machine.
"""

from __future__ import annotations

import hashlib

from trainer.data.pulse import Pulse

CLASSES = ("alpha", "beta", "gamma", "delta")
TRAIN, TEST = 2000, 400  # texts
WORDS, OWN = 400, 40  # in all; of each class, of which a third of its texts' words are
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def generate(pulse: Pulse) -> tuple[tuple[str, ...], list[tuple[str, str]], list[tuple[str, str]]]:
    """(classes, training texts, test texts), each text with its label first."""
    return CLASSES, _part("train", TRAIN, pulse), _part("test", TEST, pulse)


def _part(name: str, count: int, pulse: Pulse) -> list[tuple[str, str]]:
    found = []
    for number in range(count):
        if number % 500 == 0:
            pulse.beat(f"making SYNTHETIC texts: {number} of {count} for {name}")
        chance = hashlib.shake_128(f"baton texts 1/{name}/{number}".encode()).digest(64)
        kind = number % len(CLASSES)
        words = [_word(kind, *chance[2 * i : 2 * i + 2]) for i in range(1, 5 + chance[0] % 26)]
        found.append((CLASSES[kind], " ".join(words) + "."))
    return found


def _word(kind: int, first: int, second: int) -> str:
    number = kind * OWN + second % OWN if first % 3 == 0 else (256 * first + second) % WORDS
    return "".join(_SYLLABLES[(number * 7 + i * 31) // (i + 1) % len(_SYLLABLES)] for i in range(3))
