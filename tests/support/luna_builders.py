# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Tiny models with weights at unit scale, batches with padding anywhere, a tokenizer, and comparisons."""

import math
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import PreTrainedTokenizerFast

import modeling_luna
from configuration_luna import LunaConfig
from modeling_luna import LunaModel, LunaPackedEmbeddings

# Float64 results of the same sums of some tens of terms in another order, amplified by three layers at unit scale
# (1e-14 measured).
TOLERANCE = 1e-10


def tiny_config(**changes):
    values = {
        "vocab_size": 41,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "projection_length": 5,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return LunaConfig(**(values | changes))


def randomise(model, seed=0):
    """Weights at unit scale: attention far from uniform, norms and biases that matter, nonzero padding rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, std):
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * std + mean
        tensor.copy_(values.to(tensor.dtype))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                normal(module.weight, 0, 1.5 * module.in_features**-0.5)
                if module.bias is not None:
                    normal(module.bias, 0, 0.5)
            elif isinstance(module, torch.nn.LayerNorm):
                normal(module.weight, 1, 0.3)
                normal(module.bias, 0, 0.5)
            elif isinstance(module, torch.nn.Embedding | LunaPackedEmbeddings):
                normal(module.weight, 0, 1)
    return model


def build(model_class=LunaModel, *, attention="eager", dtype=torch.float64, seed=0, **changes):
    """A randomised tiny model in evaluation mode; `attention` may be "flash_attention_2" under `emulated_flash`."""
    model = model_class(tiny_config(**changes))
    model.config._attn_implementation = attention
    return randomise(model, seed).to(dtype).eval()


@contextmanager
def projections(form):
    """Both attentions in one form, "plain" or "absorbed", where they may choose by counting."""
    with mock.patch.object(modeling_luna, "pays_to_absorb", lambda *sizes: form == "absorbed"):
        yield


def random_ids(n, seed=0, vocab_size=41):
    """n ids from 4 up: no special tokens."""
    return torch.randint(4, vocab_size, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def ids_of(*rows):
    return torch.tensor(rows)


def place(rows, columns, width, pad):
    """Rows of values at their columns of a (len(rows), width) tensor, `pad` elsewhere."""
    result = torch.full((len(rows), width), pad)
    for i, (row, columns_of_row) in enumerate(zip(rows, columns, strict=True)):
        result[i, columns_of_row] = torch.tensor(row, dtype=torch.long)
    return result


def columns_for(lengths, width, side="right"):
    """The columns of each row's tokens when it is padded on the right or on the left."""
    return [list(range(n)) if side == "right" else list(range(width - n, width)) for n in lengths]


def pad_batch(rows, width=None, side="right", pad=1):
    width = max(len(row) for row in rows) if width is None else width
    columns = columns_for([len(row) for row in rows], width, side)
    return {
        "input_ids": place(rows, columns, width, pad),
        "attention_mask": place([[1] * len(row) for row in rows], columns, width, 0),
    }


SENTENCES = [
    "Luna packs a long text into a short one and unpacks it again.",
    "Attention over a packed text costs time in proportion to the length.",
    "The moon goes around the earth, and the earth goes around the sun.",
]


def make_tokenizer():
    """A byte-level BPE with the special ids of RoBERTa: 0 to 3, and <mask> last."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(
        SENTENCES,
        vocab_size=320,
        min_frequency=1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    bpe._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    return tokenizer


def assert_close(actual, expected, tolerance):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=tolerance, atol=tolerance)


def assert_refused_in_one_sentence(call, parts):
    """A ValueError of one sentence with these parts."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert message.endswith(".") and message.count(". ") == 0 and "\n" not in message, "one sentence"


def assert_initialised(weight, std):
    """Normal(0, std): mean and standard deviation within five standard errors."""
    n = weight.numel()
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(n)
    assert weight.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))
