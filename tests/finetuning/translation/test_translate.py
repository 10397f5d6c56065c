# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""`luna translate` in pipes: the lines' order, empty ones, what cannot be read, and signals."""

import io
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configuration_luna import LunaConfig
from finetuning.translation import translate
from finetuning.translation.translate import TranslateOptions, Translator, translate_stream
from finetuning.translation.vocabulary import train_tokenizer
from luna_tools.command_line import run
from luna_tools.errors import InputError
from modeling_luna import LunaForConditionalGeneration
from tests.support.finetuning import write_checkpoint
from tests.support.ranks import ROOT

SHORT = ["--max_length", "12", "--num_beams", "2"]


class Feeds:
    """A standard stream in a pipe."""

    def __init__(self, content: bytes = b""):
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        pass


def pipe(monkeypatch, content: bytes, *argv) -> tuple[int, bytes]:
    """Exit status and output of the program on some input."""
    out = Feeds()
    monkeypatch.setattr(sys, "stdin", Feeds(content))
    monkeypatch.setattr(sys, "stdout", out)
    return run("translate", [str(token) for token in argv]), out.buffer.getvalue()


def test_lines_come_out_in_order_as_the_training_run_translated_them(finished, files, monkeypatch):
    source = open(files["test_files"][0], "rb").read()
    expected = (finished / "translations_test.txt").read_bytes()
    for options in ([], ["--batch_size", "2"], ["--window", "3", "--batch_size", "2"]):
        assert pipe(monkeypatch, source, finished, *SHORT, *options) == (0, expected)
    status, out = pipe(monkeypatch, b"\n" + source.replace(b"\n", b"\r\n \r\n").removesuffix(b"\r\n"), finished, *SHORT)
    assert status == 0 and out == b"\n" + expected.replace(b"\n", b"\n\n")


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.text("abc ", max_size=9), max_size=12), window=st.integers(1, 5), batch_size=st.integers(1, 4))
def test_any_division_keeps_the_order(lines, window, batch_size):
    translator = Translator.__new__(Translator)
    translator.options, translator.limit, translator.name = TranslateOptions(batch_size=batch_size), 99, "it"
    translator.tokenizer = lambda line: {"input_ids": [ord(letter) for letter in line]}
    translator.translate_batch = lambda ids: ["".join(map(chr, row)).upper() for row in ids]
    stream = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    expected = [line.upper() if line.strip() else "" for line in lines]
    assert list(translate_stream(stream, translator, window)) == expected


def test_nothing_in_gives_nothing_out(finished, monkeypatch):
    assert pipe(monkeypatch, b"", finished, *SHORT) == (0, b"")
    assert pipe(monkeypatch, b"\n", finished, *SHORT) == (0, b"\n")


def test_what_was_read_before_a_bad_line_is_written(finished, monkeypatch, capsys):
    status, out = pipe(monkeypatch, b"\n\n\nthe cat\xff\n", finished, *SHORT, "--window", "2")
    assert (status, out) == (2, b"\n\n\n")
    assert capsys.readouterr().err.endswith(
        "error: Line 4 of the input is not UTF-8: convert the file, as by `iconv -t UTF-8`.\n"
    )


def test_a_line_that_is_too_long_is_named():
    translator = Translator.__new__(Translator)
    translator.options, translator.limit, translator.name = TranslateOptions(), 4, "it"
    translator.tokenizer = lambda line: {"input_ids": list(line)}
    with pytest.raises(InputError, match="Line 12 has 5 tokens, but it reads at most 4: divide it"):
        translator.encode("abcde", 12)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "Give MODEL before the options, not nothing"),
        (["{finished}", "--num_beams", "0"], "`num_beams` is 0: give at least 1"),
        (["{finished}", "--beams", "3"], "'--beams' is not an option, perhaps --num_beams is meant"),
        (["{nowhere}"], "nowhere is neither a folder with a checkpoint nor a model of the Hub"),
        (["{masked}"], r"masked \(luna\) cannot translate \(it has no decoder that reads an encoder\): give an encoder-dec"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(argv, sentence, finished, tmp_path, monkeypatch, capsys):
    if "{masked}" in argv:
        write_checkpoint(tmp_path / "masked")
    places = {"finished": finished, "nowhere": tmp_path / "nowhere", "masked": tmp_path / "masked"}
    status, out = pipe(monkeypatch, b"a\n", *(token.format(**places) for token in argv))
    assert (status, out) == (2, b"")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert re.search(sentence, line) and line.endswith(".")


def test_ctrl_c_is_one_sentence(finished, monkeypatch, capsys):
    def interrupt(*args):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(translate, "translate_stream", interrupt)
    assert pipe(monkeypatch, b"a\n", finished, *SHORT)[0] == 130
    assert capsys.readouterr().err.splitlines()[-1] == "Interrupted: give the same command again."


def test_who_types_has_each_line_at_once(finished, monkeypatch):
    """Windows of one line on a terminal."""
    windows = []
    monkeypatch.setattr(translate, "translate_stream", lambda stream, translator, window: windows.append(window) or [])
    monkeypatch.setattr(translate, "Translator", lambda *args: None)
    stdin = SimpleNamespace(isatty=lambda: True, buffer=io.BytesIO())
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "stdout", Feeds())
    assert run("translate", [str(finished)]) == 0
    stdin.isatty = lambda: False
    assert run("translate", [str(finished)]) == 0
    assert windows == [1, 1024]


@pytest.mark.slow
def test_a_reader_that_has_gone_ends_the_program_in_silence(finished):
    command = f"yes 'the cat sees' | {sys.executable} -m luna_tools.command_line translate {finished} {' '.join(SHORT)} "
    done = subprocess.run(
        ["bash", "-c", command + "--window 2 | head -n 3; echo ${PIPESTATUS[1]}"], capture_output=True, text=True, cwd=ROOT
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and len(set(lines[:3])) == 1 and lines[3] == str(128 + signal.SIGPIPE)
    assert "Traceback" not in done.stderr and "error" not in done.stderr


def test_a_target_with_a_vocabulary_of_its_own_is_decoded_by_its_tokenizer(tmp_path):
    lines = {"source": ["the cat sees the dog"], "target": ["die Katze sieht den Hund"]}
    tokenizers = {side: train_tokenizer(20 * text, 270) for side, text in lines.items()}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = LunaConfig(**sizes, vocab_size=270, target_vocab_size=270, is_encoder_decoder=True, projection_length=4)
    LunaForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizers["source"].save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has a target vocabulary of its own, and no tokenizer of it"):
        Translator(str(tmp_path), TranslateOptions())
    tokenizers["target"].save_pretrained(tmp_path / "target")
    translator = Translator(str(tmp_path), TranslateOptions(max_length=8, num_beams=1))
    assert translator.tokenizer.get_vocab() == tokenizers["source"].get_vocab()
    assert translator.target_tokenizer.get_vocab() == tokenizers["target"].get_vocab()
    (ids,) = [tokenizers["target"]("Katze")["input_ids"]]
    translator.model.generate = lambda **inputs: [ids]
    assert translator.translate([translator.encode("the cat", 1)]) == ["Katze"]
