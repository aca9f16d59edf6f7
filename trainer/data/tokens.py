"""Tokenizers: a model's own, or a WordPiece vocabulary learned from the texts themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer.data.pulse import Pulse, beside
from trainer.exits import UserError
from trainer.pretrained import MAX_LENGTH, TOKENIZER, TOKENIZER_CONFIG

VOCABULARY = 8192  # at most, of one that is learned
ALPHABET = 1000  # its characters, at most
UNKNOWN = "[UNK]"
SPECIAL = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
BLOCK = 1000  # texts between two looks at the pulse
Files = Mapping[str, str]  # a tokenizer's files, by name


def learn(texts: Sequence[str], pulse: Pulse) -> Files:
    """A WordPiece tokenizer as BERT's uncased one, its vocabulary learned from `texts`; the same for the same texts."""
    return beside(partial(_learn, texts, pulse), pulse)


def _learn(texts: Sequence[str], pulse: Pulse) -> Files:
    blank = _as_bert({UNKNOWN: 0})

    def told() -> Iterator[str]:
        for number, text in enumerate(texts):
            pulse.beat(f"learning the vocabulary: {number:,} of {len(texts):,} texts")
            yield text

    counts = Counter(c for text in texts for c in blank.normalizer.normalize_str(text) if not c.isspace())
    known = sorted(c for c, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:ALPHABET])
    # Characters come first and in order: the library numbers them as it happens to meet them, and by these numbers it
    # chooses between pairs that are equally frequent. It takes them for special tokens, so only the vocabulary is kept.
    first = [*SPECIAL, *known, *(f"##{c}" for c in known)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=first, limit_alphabet=ALPHABET, show_progress=False
    )
    blank.train_from_iterator(told(), trainer, len(texts))
    tokenizer = _as_bert(blank.get_vocab())
    tokenizer.add_special_tokens(list(SPECIAL))
    begin, end = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", begin), ("[SEP]", end)]
    )
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": MAX_LENGTH,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    }
    return {TOKENIZER: tokenizer.to_str(), TOKENIZER_CONFIG: json.dumps(config, indent=2)}


def _as_bert(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def loaded(files: Files, where: str) -> Tokenizer:
    """The tokenizer of these files, which neither pads nor cuts. Raises `UserError`."""
    try:
        tokenizer = Tokenizer.from_str(files[TOKENIZER])
    except Exception as e:  # the library raises nothing narrower
        raise UserError(f"{where}: its {TOKENIZER} can't be read: {e}") from e
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encoded(
    tokenizer: Tokenizer, texts: Sequence[str], most: int, pulse: Pulse, what: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """All texts' tokens one after the other (int32), where each begins and ends (int64 [n + 1]), how many were cut."""
    tokenizer.enable_truncation(most)
    tokens: list[np.ndarray[Any, Any]] = []
    offsets = np.zeros(len(texts) + 1, np.int64)
    cut = 0
    for start in range(0, len(texts), BLOCK):
        pulse.beat(f"tokenizing: {start:,} of {len(texts):,} texts for {what}")
        # a text of 10 MB alone takes half a minute
        encodings = beside(partial(tokenizer.encode_batch, list(texts[start : start + BLOCK])), pulse)
        for number, encoding in enumerate(encodings, start + 1):
            tokens.append(np.asarray(encoding.ids, np.int32))
            offsets[number] = len(encoding.ids)
            cut += bool(encoding.overflowing)
    return np.concatenate(tokens), np.cumsum(offsets), cut
