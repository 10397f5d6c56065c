# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""The Transformer of the Long Range Arena's tables: RoBERTa's encoder, as transformers has it, under Luna's head."""

from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, RobertaConfig, RobertaModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.roberta.modeling_roberta import RobertaPreTrainedModel

from modeling_luna import LunaClassificationHead, flatten_texts, mean_loss, take_positions


@strict
class TransformerConfig(RobertaConfig):
    """RoBERTa's configuration, with one token type and the fields of Luna's heads."""

    model_type = "transformer"

    type_vocab_size: int = 1
    classifier_pooling: Literal["cls", "mean", "mean_unmasked"] = "cls"
    classifier_hidden_size: int | None = None
    classifier_act: str = "tanh"
    classifier_bias: bool = True
    classifier_pair: Literal["concat", "interact"] | None = None
    classifier_dropout: float | int = 0.0


class TransformerForSequenceClassification(RobertaPreTrainedModel):
    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.classifier = LunaClassificationHead(config, config.num_labels, config.classifier_pair)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Logits (b, c) of ids (b, n), or (b, 2, n) where `classifier_pair` says so, and with labels (b,) the loss."""
        if self.config.classifier_pair is not None:
            input_ids, attention_mask, *_ = flatten_texts("A pair of texts", 2, input_ids, attention_mask, None, None)
        x_bnd = self.roberta(input_ids, attention_mask).last_hidden_state
        x_brd = take_positions(x_bnd, self.classifier.read_positions(input_ids, attention_mask))
        logits_bc = self.classifier(x_brd, None, None, attention_mask)
        loss = None if labels is None else mean_loss(nn.functional.cross_entropy, logits_bc, labels, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits_bc)


AutoConfig.register("transformer", TransformerConfig, exist_ok=True)
AutoModelForSequenceClassification.register(TransformerConfig, TransformerForSequenceClassification, exist_ok=True)
