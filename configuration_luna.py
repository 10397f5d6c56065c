# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Luna configuration."""

import os
from typing import TYPE_CHECKING, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import auto_docstring

if TYPE_CHECKING:
    # Never imported. transformers looks for such lines to learn which files belong together: a configuration that is saved
    # alone brings the model's code too, and folders with other code never share a configuration class, nor by it a model.
    from .modeling_luna import LunaPreTrainedModel  # noqa: F401

# The class of modeling_luna that each Auto class loads.
AUTO_CLASSES = {
    "AutoModel": "LunaModel",
    "AutoModelForCausalLM": "LunaForCausalLM",
    "AutoModelForMaskedLM": "LunaForMaskedLM",
    "AutoModelForMultipleChoice": "LunaForMultipleChoice",
    "AutoModelForQuestionAnswering": "LunaForQuestionAnswering",
    "AutoModelForSeq2SeqLM": "LunaForConditionalGeneration",
    "AutoModelForSequenceClassification": "LunaForSequenceClassification",
    "AutoModelForTokenClassification": "LunaForTokenClassification",
}

# The sizes of an encoder-decoder's decoder, and those of the encoder that they are by default.
DECODER_SIZES = {
    "decoder_layers": "num_hidden_layers",
    "decoder_attention_heads": "num_attention_heads",
    "decoder_packed_attention_heads": "packed_attention_heads",
    "decoder_ffn_dim": "intermediate_size",
}


@auto_docstring(checkpoint="luna-base-tied")
@strict
class LunaConfig(PreTrainedConfig):
    r"""
    projection_length (`int`, *optional*, defaults to 128):
        l, the number of packed vectors P (section 3.1 of the paper).
    tie_key_value (`bool`, *optional*, defaults to `True`):
        One projection serves as key and value, in the pack and in the unpack attention ("tied kv" in the paper's tables).
    dynamic_projection (`bool`, *optional*, defaults to `True`):
        A row of n tokens uses min(l, n) of the packed vectors, so that short texts are not packed into more vectors than
        they have tokens. `False` gives every row all l of them.
    contextual_projection (`bool`, *optional*, defaults to `True`):
        The packed vectors that a layer returns feed the next layer. `False` gives each layer learned vectors of its own
        (the non-contextual P of Table 5).
    packed_attention_heads (`int`, *optional*):
        Heads of the pack attention; by default as many as `num_attention_heads`, those of the unpack attention.
    position_embedding_type (`str`, *optional*, defaults to `"learned"`):
        `"learned"`, or `"sinusoidal"`: no position parameters, and sinusoids added to the tokens and to P.
    scale_embedding (`bool`, *optional*):
        Multiply the embeddings of tokens and of P by sqrt(hidden_size); by default with sinusoidal positions only.
    embedding_layer_norm (`bool`, *optional*, defaults to `True`):
        A layer norm after the embeddings of tokens and of P. The translation models of the paper have none.
    norm_first (`bool`, *optional*, defaults to `False`):
        Pre-norm layers, with a final norm on the hidden states and on P. The default is post-norm, as in the paper.
    share_layer_weights (`bool`, *optional*, defaults to `False`):
        All layers use the weights of one; a decoder's layers, those of another.
    activation_dropout (`float`, *optional*, defaults to 0.0):
        Dropout after the activation inside the feed-forward network.
    causal_activation (`str`, *optional*, defaults to `"softplus"`):
        omega of the causal attention (section 3.3), of which its weights are made: `"softplus"` with beta = ln 2,
        `"softplus_natural"` with beta = 1, or `"elu"`, elu(x) + 1.
    decoder_layers (`int`, *optional*):
        Layers of an encoder-decoder's decoder; by default `num_hidden_layers`. A decoder-only model has none of the fields
        `decoder_*`: its layers are the `num_hidden_layers`.
    decoder_attention_heads (`int`, *optional*):
        Heads of its causal attention and of its unpack attention; by default `num_attention_heads`.
    decoder_packed_attention_heads (`int`, *optional*):
        Heads with which it packs the source; by default `packed_attention_heads`, or, without these,
        `decoder_attention_heads`.
    decoder_ffn_dim (`int`, *optional*):
        Width of its feed-forward network; by default `intermediate_size`.
    target_vocab_size (`int`, *optional*):
        Vocabulary of an encoder-decoder's target language, with embeddings of its own; by default source and target share
        one vocabulary and its embeddings.
    classifier_pooling (`str`, *optional*, defaults to `"cls"`):
        The sentence representation that classification and multiple-choice heads read: `"cls"`, the first token;
        `"packed_mean"`, the mean over P (Table 3 of the paper); `"packed_max"`, the maximum over a projection of P;
        `"packed_attention"`, attention of the first token over P; `"mean"`, the mean over the tokens. Three more are for
        converted Long Range Arena checkpoints, whose results depend on how the batch is padded: `"mean_unmasked"`, the mean
        over tokens and padding; `"packed_mean_unmasked"`, the mean over the slots of P that any row uses;
        `"packed_mean_unmasked_no_cls"`, the same of inputs that lose their first token.
    classifier_hidden_size (`int`, *optional*):
        Size of the hidden layer in classification and multiple-choice heads: by default hidden_size; 0 for none.
    classifier_act (`str`, *optional*, defaults to `"tanh"`):
        Activation after that layer. The official Long Range Arena heads have `"relu"`.
    classifier_bias (`bool`, *optional*, defaults to `True`):
        Whether these heads add a bias to the logits. The official Long Range Arena heads do not.
    classifier_pair (`str`, *optional*):
        For sequence classification of two texts, each encoded alone: what the head reads of their representations,
        `"concat"`, [second; first], or `"interact"`, [second; first; second * first; second - first]. By default a row is
        one text.
    classifier_dropout (`float`, *optional*, defaults to 0.0):
        Dropout in the heads; the official heads drop nothing.
    output_logits (`bool`, *optional*, defaults to `False`):
        Return logits also when labels are given. By default a call with labels projects only the masked positions to the
        vocabulary and returns no logits.

    Examples:

    ```python
    >>> from configuration_luna import LunaConfig
    >>> from modeling_luna import LunaModel

    >>> configuration = LunaConfig(projection_length=16)
    >>> model = LunaModel(configuration)
    >>> configuration = model.config
    ```"""

    model_type = "luna"
    # What the Trainer must not mistake for predictions.
    keys_to_ignore_at_inference = ["packed_state", "packed_attention_mask", "packed_states", "pack_attentions"]
    keys_to_ignore_at_inference += ["past_key_values", "cache", "encoder_last_hidden_state"]

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    projection_length: int = 128
    tie_key_value: bool = True
    dynamic_projection: bool = True
    contextual_projection: bool = True
    packed_attention_heads: int | None = None
    position_embedding_type: Literal["learned", "sinusoidal"] = "learned"
    scale_embedding: bool | None = None
    embedding_layer_norm: bool = True
    norm_first: bool = False
    share_layer_weights: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    activation_dropout: float | int = 0.0
    causal_activation: Literal["softplus", "softplus_natural", "elu"] = "softplus"
    is_decoder: bool = False
    is_encoder_decoder: bool = False
    decoder_layers: int | None = None
    decoder_attention_heads: int | None = None
    decoder_packed_attention_heads: int | None = None
    decoder_ffn_dim: int | None = None
    target_vocab_size: int | None = None
    decoder_start_token_id: int | None = 2
    use_cache: bool = True
    max_position_embeddings: int = 514
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True
    classifier_pooling: Literal[
        "cls",
        "packed_mean",
        "packed_max",
        "packed_attention",
        "mean",
        "mean_unmasked",
        "packed_mean_unmasked",
        "packed_mean_unmasked_no_cls",
    ] = "cls"
    classifier_hidden_size: int | None = None
    classifier_act: str = "tanh"
    classifier_bias: bool = True
    classifier_pair: Literal["concat", "interact"] | None = None
    classifier_dropout: float | int = 0.0
    output_logits: bool = False

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers; configurations of earlier versions say null where the heads' dropout was not chosen."""
        if config_dict.get("classifier_dropout", 0.0) is None:
            config_dict = config_dict | {"classifier_dropout": 0.0}
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As in transformers, but `auto_map`, by which `trust_remote_code=True` finds the code, names every class.

        transformers itself names the class that is being saved alone: AutoModel could not load a masked language model.
        """
        self.validate()  # before the first file is written
        self.auto_map = {"AutoConfig": "configuration_luna.LunaConfig"}
        self.auto_map |= {auto_name: f"modeling_luna.{class_name}" for auto_name, class_name in AUTO_CLASSES.items()}
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None):
        """This configuration, for encoder and decoder alike.

        transformers itself makes a copy in which the decoder's sizes take the place of the encoder's, and None that of the
        number of layers.
        """
        return self

    def decoder_size(self, name: str) -> int | None:
        """One of DECODER_SIZES, as it is given or as it is by default."""
        value = getattr(self, name)
        return getattr(self, DECODER_SIZES[name]) if value is None else value

    @property
    def scales_embeddings(self) -> bool:
        """`scale_embedding`, as it is given or as it is by default."""
        return self.position_embedding_type == "sinusoidal" if self.scale_embedding is None else self.scale_embedding

    @property
    def max_sequence_length(self) -> int | None:
        """Longest input in tokens: positions start after `pad_token_id`, as in RoBERTa. None where there is no limit."""
        if self.position_embedding_type == "sinusoidal":
            return None
        return self.max_position_embeddings - self.pad_token_id - 1

    def validate_sizes(self):
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "projection_length",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be at least 1.")
        for name in ("packed_attention_heads", "target_vocab_size", *DECODER_SIZES):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be at least 1, or None for the default.")
        for name in ("num_attention_heads", "packed_attention_heads", *DECODER_SIZES):
            if name.endswith("heads") and self.hidden_size % (getattr(self, name) or 1):
                raise ValueError(
                    f"`hidden_size` is {self.hidden_size}, which `{name}` = {getattr(self, name)} does not divide: choose a "
                    "number of heads that does."
                )
        if self.position_embedding_type == "sinusoidal" and (self.hidden_size % 2 or self.hidden_size < 4):
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}, but sinusoidal positions need an even number of at least 4: "
                'change it or set `position_embedding_type` to "learned".'
            )
        if self.classifier_hidden_size is not None and self.classifier_hidden_size < 0:
            raise ValueError(
                f"`classifier_hidden_size` is {self.classifier_hidden_size}, but must be a size, 0 for no hidden layer, or "
                "None for hidden_size."
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` is {self.pad_token_id}, but must be an id of the vocabulary, 0 to {self.vocab_size - 1}."
            )
        if self.position_embedding_type == "learned" and self.max_sequence_length < 1:
            raise ValueError(
                f"`max_position_embeddings` is {self.max_position_embeddings}, which leaves no position for a token: "
                f"positions start after `pad_token_id` = {self.pad_token_id}, so set it to the longest input in tokens "
                f"plus {self.pad_token_id + 1}."
            )

    def validate_decoder(self):
        if self.is_decoder and self.is_encoder_decoder:
            raise ValueError(
                "`is_decoder` and `is_encoder_decoder` are both True: set the first for a decoder-only model, the second "
                "for an encoder and a decoder."
            )
        for name in ("target_vocab_size", *DECODER_SIZES):
            if getattr(self, name) is not None and not self.is_encoder_decoder:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but only an encoder-decoder has it: set `is_encoder_decoder` to "
                    f"True, or leave `{name}` out."
                )
        ids = self.vocab_size if self.target_vocab_size is None else self.target_vocab_size
        if self.is_encoder_decoder and not (self.decoder_start_token_id is None or 0 <= self.decoder_start_token_id < ids):
            raise ValueError(
                f"`decoder_start_token_id` is {self.decoder_start_token_id}, but must be an id of the target's vocabulary, "
                f"0 to {ids - 1}."
            )
        if self.target_vocab_size is not None and self.pad_token_id is not None and self.pad_token_id >= ids:
            raise ValueError(
                f"`pad_token_id` is {self.pad_token_id}, but must be an id of the target's vocabulary too, 0 to {ids - 1}."
            )

    def validate_activation(self):
        for name in ("hidden_act", "classifier_act"):
            if getattr(self, name) not in ACT2FN:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, which is not an activation of transformers: choose for example "
                    '"gelu" or "relu".'
                )

    def validate_probabilities(self):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but a dropout probability must be in [0, 1).")
        for name in ("initializer_range", "layer_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be above 0.")


LunaConfig.register_for_auto_class()  # save_pretrained brings the code


__all__ = ["LunaConfig"]
