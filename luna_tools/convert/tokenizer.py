# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The tokenizer of an official (fairseq) checkpoint: `dict.txt` and the two files of GPT-2's byte-level BPE.

`encoder.json` numbers the pieces of the BPE, `vocab.bpe` lists its merges, and `dict.txt` gives each number, as a symbol in
decimal digits, the id that the model knows. A translation model has a dictionary of words or pieces of words for each of its
two languages, and reads text that was split into these before.
"""

import itertools
import json
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from luna_tools.errors import InputError, told
from luna_tools.tokenizer import FIRST_TOKENS, MASK_TOKEN, wrap_tokenizer

FILLER = re.compile(r"madeupword\d+")  # fairseq fills dictionaries up to a round size with these
BYTE_PIECES = sorted(pre_tokenizers.ByteLevel.alphabet())  # in the order of GPT-2's numbers 0 to 255
OVERWRITE = " #fairseq:overwrite"  # ends a line of a dictionary that repeats a symbol on purpose
MERGES_HEADER = "#version: 0.2"

Merges = list[tuple[str, str]]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a file that is `what`.

    Raises:
        InputError: no such file, or not UTF-8 text.
    """
    if not path.is_file():
        raise InputError(f"There is no {what} file {path}.")
    with told(f"{path} is not a {what} file", "give the one that came with the checkpoint"):
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the first line
    return text.removesuffix("\n").split("\n") if text else []


def read_dictionary(path: str | Path) -> list[str]:
    """The symbols of the `dict.txt` of a masked language model: as `read_symbols`, and <mask>."""
    symbols = read_symbols(path)
    return symbols if MASK_TOKEN in symbols else [*symbols, MASK_TOKEN]


def read_symbols(path: str | Path) -> list[str]:
    """The symbols of a fairseq dictionary in the order of their ids, with the first ones, which it leaves out.

    A symbol that a later line overwrites is in the list twice, and its later id is the one that texts get.

    Raises:
        InputError: no such file, or a line that is not "symbol count", or a symbol twice without the flag for it.
    """
    symbols = list(FIRST_TOKENS)
    seen = set(symbols)
    for number, line in enumerate(read_lines(Path(path), "dictionary"), start=1):
        text = line.rstrip()
        entry = text.removesuffix(OVERWRITE)
        symbol, _, count = entry.rpartition(" ")
        if not symbol or not count.isdecimal():
            raise InputError(f"Line {number} of {path} is {line!r}, but must be a symbol, a space and a count.")
        if symbol in seen and entry == text:
            raise InputError(f"Line {number} of {path} repeats the symbol {symbol!r}.")
        symbols.append(symbol)
        seen.add(symbol)
    return symbols


def check_vocabulary(dictionary: Path, size: int, embeddings: int) -> None:
    """Raises InputError for a dictionary of another size than the model."""
    if size != embeddings:
        raise InputError(
            f"{dictionary} makes a vocabulary of {size} symbols with the special ones, but the checkpoint has embeddings "
            f"for {embeddings}."
        )


def read_bpe(encoder_json: Path, vocab_bpe: Path) -> tuple[dict[str, int], Merges]:
    """GPT-2's numbers of the pieces and its merges, the most frequent first.

    Raises:
        InputError: a file is missing or of another format, or the two do not belong together.
    """
    with told(f"{encoder_json} is not a BPE encoder file", "give a JSON object of pieces and numbers"):
        numbers = json.loads("\n".join(read_lines(encoder_json, "BPE encoder")))
        if not all(type(number) is int for number in numbers.values()):
            raise TypeError("not all values are numbers")
    if len(set(numbers.values())) < len(numbers):
        raise InputError(f"{encoder_json} gives two pieces the same number.")
    if missing := [piece for piece in BYTE_PIECES if piece not in numbers]:
        raise InputError(f"{encoder_json} lacks pieces of single bytes, such as {missing[0]!r}.")

    lines = read_lines(vocab_bpe, "BPE merges")
    if not lines or not lines[0].startswith("#version"):
        raise InputError(f"{vocab_bpe} is not a BPE merges file: line 1 must start with #version.")
    merges = []
    for number, line in enumerate(lines[1:], start=2):
        parts = line.split()
        if len(parts) != 2:
            raise InputError(f"Line {number} of {vocab_bpe} is {line!r}, but must be two pieces.")
        for piece in (*parts, "".join(parts)):
            if piece not in numbers:
                raise InputError(f"Line {number} of {vocab_bpe} needs the piece {piece!r}, which {encoder_json} lacks.")
        merges.append(tuple(parts))
    # Pieces like <|endoftext|> are in the encoder without a merge.
    made = {"".join(merge) for merge in merges}.union(BYTE_PIECES)
    if unmade := [piece for piece in numbers if piece not in made and not re.fullmatch("<.*>", piece)]:
        raise InputError(
            f"{encoder_json} has {len(unmade)} pieces that no merge of {vocab_bpe} makes, such as {unmade[0]!r}."
        )
    return numbers, merges


# ---------------------------------------------------------------------------------------------------------------------
# From the official files to a tokenizer


def map_pieces(symbols: list[str], numbers: dict[str, int], merges: Merges) -> dict[str, int]:
    """The id of each piece of the BPE, and of the symbols that are none.

    Args:
        symbols: of the dictionary, in the order of their ids.

    Raises:
        InputError: the dictionary was made with another BPE, or lacks pieces of this one.
    """
    pieces = {str(number): piece for piece, number in numbers.items()}
    others = {*FIRST_TOKENS, MASK_TOKEN}
    # A symbol that is overwritten has its later id, but the official code keeps the special ids that it starts with.
    id_of_symbol = {symbol: i for i, symbol in enumerate(symbols)} | {symbol: i for i, symbol in enumerate(FIRST_TOKENS)}
    fillers = (name for i in itertools.count() if (name := f"madeupword{i:04d}") not in id_of_symbol)
    ids: dict[str, int] = {}
    for i, symbol in enumerate(symbols):
        if id_of_symbol[symbol] != i:
            symbol = next(fillers)  # no text has the overwritten id
        if symbol not in others and not FILLER.fullmatch(symbol) and symbol not in pieces:
            raise InputError(
                f"The dictionary and the BPE do not belong together: the symbol {symbol!r} is no number of encoder.json."
            )
        piece = symbol if symbol in others else pieces.get(symbol, symbol)
        if piece in ids:
            raise InputError(f"The piece {piece!r} of encoder.json is also a symbol of the dictionary.")
        ids[piece] = i
    # The official code reads a piece without a symbol as <unk>. A fast tokenizer can do so for bytes alone: without a
    # merged piece it would split the text in another way.
    needed = dict.fromkeys(piece for a, b in merges for piece in (a, b, a + b))
    if missing := [piece for piece in needed if piece not in ids]:
        raise InputError(
            f"The dictionary lacks {len(missing)} of the BPE's {len(numbers)} pieces, such as {numbers[missing[0]]} "
            f"({missing[0]!r}), which no fast tokenizer reads as the official code does: convert without --encoder_json and "
            "--vocab_bpe."
        )
    return ids


def build_tokenizer(
    symbols: list[str], numbers: dict[str, int], merges: Merges, max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """A RoBERTa-style tokenizer with the ids of the dictionary.

    Args:
        symbols: of the dictionary, in the order of their ids.
        numbers, merges: of the BPE, from `read_bpe`.
        max_length: tokens that the model takes; longer inputs are cut when truncation is asked for.

    Raises:
        InputError: dictionary and BPE do not belong together.
    """
    ids = map_pieces(symbols, numbers, merges)
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    tokenizer.add_special_tokens([*FIRST_TOKENS, AddedToken(MASK_TOKEN, lstrip=True)])
    wrapped = wrap_tokenizer(tokenizer)
    if max_length is not None:
        wrapped.model_max_length = max_length
    return wrapped


def build_word_tokenizer(symbols: list[str], max_length: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of one language of a translation model, which splits text at spaces and ends it with </s>.

    In decoded text a piece that ends in @@ is joined to the next one.

    Args:
        symbols: of the dictionary, in the order of their ids.
    """
    ids = {symbol: i for i, symbol in enumerate(symbols)} | {symbol: i for i, symbol in enumerate(FIRST_TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex("$"), " "), decoders.Replace("@@ ", ""), decoders.Fuse(), decoders.Replace(Regex(" $"), "")]
    )
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", ids["</s>"])])
    tokenizer.add_special_tokens(list(FIRST_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
        **({} if max_length is None else {"model_max_length": max_length}),
    )


# ---------------------------------------------------------------------------------------------------------------------
# And back


def recover_dictionary(tokenizer_json: Path, vocab_size: int) -> str:
    """The content of a translation model's dictionary for a saved tokenizer; counts are 0.

    Raises:
        InputError: the tokenizer is not one of whole words, or of another size.
    """
    if not tokenizer_json.is_file():
        raise InputError(f"There is no tokenizer {tokenizer_json}.")
    with told(f"{tokenizer_json} cannot be read", "save the tokenizer again"):
        content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
        kind, ids = content["model"]["type"], content["model"]["vocab"]
    if kind != "WordLevel" or sorted(ids.values()) != list(range(vocab_size)):
        raise InputError(f"{tokenizer_json} is not a tokenizer of {vocab_size} whole words, as the official code has.")
    symbols = sorted(ids, key=ids.get)
    if tuple(symbols[: len(FIRST_TOKENS)]) != FIRST_TOKENS:
        raise InputError(f"{tokenizer_json} does not give {', '.join(FIRST_TOKENS)} the ids 0 to 3.")
    return "".join(f"{symbol} 0\n" for symbol in symbols[len(FIRST_TOKENS) :])


def recover_files(tokenizer_json: Path, vocab_size: int) -> dict[str, str]:
    """The content of dict.txt, encoder.json and vocab.bpe for a saved tokenizer, by file name.

    A tokenizer does not hold the numbers of its pieces. GPT-2's are recovered: bytes, merged pieces in the order of the
    merges, then the rest. Nor does it hold the counts of the dictionary, which are 0.

    Raises:
        InputError: the tokenizer splits text in a way that the official code does not, or has other special ids.
    """
    if not tokenizer_json.is_file():
        raise InputError(f"There is no tokenizer {tokenizer_json}.")
    with told(f"{tokenizer_json} cannot be read", "save the tokenizer again"):
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
    content = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    split = content["pre_tokenizer"] or {}
    is_gpt2 = split.get("type") == "ByteLevel" and split.get("use_regex", True) and not split.get("add_prefix_space")
    ids = tokenizer.get_vocab()
    symbols = sorted(ids, key=ids.get)
    if content["model"].get("type") != "BPE" or content["normalizer"] is not None or not is_gpt2:
        raise InputError(f"{tokenizer_json} is not GPT-2's byte-level BPE without a prefix space.")
    if tuple(symbols[: len(FIRST_TOKENS)]) != FIRST_TOKENS or MASK_TOKEN not in ids:
        raise InputError(f"{tokenizer_json} does not give {', '.join(FIRST_TOKENS)} the ids 0 to 3, or has no <mask>.")
    if sorted(ids.values()) != list(range(vocab_size)):
        raise InputError(f"{tokenizer_json} has {len(ids)} entries, but the model's vocabulary has {vocab_size}.")

    # Older files hold "a b" for ["a", "b"].
    merges = [tuple(merge.split() if isinstance(merge, str) else merge) for merge in content["model"]["merges"]]
    merged = dict.fromkeys(a + b for a, b in merges)
    others = {*FIRST_TOKENS, MASK_TOKEN, *filter(FILLER.fullmatch, ids)}
    rest = [piece for piece in symbols if piece not in others and piece not in merged and piece not in BYTE_PIECES]
    numbers = {piece: number for number, piece in enumerate([*BYTE_PIECES, *merged, *rest])}
    lines = [symbol if symbol in others else str(numbers[symbol]) for symbol in symbols[len(FIRST_TOKENS) :]]
    if lines[-1] == MASK_TOKEN:
        lines.pop()  # the official code appends it
    return {
        "dict.txt": "".join(f"{symbol} 0\n" for symbol in lines),
        "encoder.json": json.dumps(numbers),
        "vocab.bpe": "".join(f"{line}\n" for line in [MERGES_HEADER, *(f"{a} {b}" for a, b in merges)]),
    }
