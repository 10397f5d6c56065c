# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Equations 3 to 7 of the Luna paper for one row without padding, in float64, as loops and matrix products.

Nothing here is shared with the implementation: numpy, no batch, no masks, no library attention. `weights` is the state
dict of a `LunaModel` as numpy arrays in float64 (`as_weights`), `config` anything with the fields of `LunaConfig`.
"""

import math
from types import SimpleNamespace

import numpy as np


def as_weights(state_dict):
    return {name: tensor.detach().cpu().double().numpy() for name, tensor in state_dict.items()}


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def layer_norm(weights, name, x, eps):
    rows = []
    for row in x:
        mean = row.mean()
        variance = ((row - mean) ** 2).mean()
        rows.append((row - mean) / math.sqrt(variance + eps))
    return np.array(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sinusoid(position, d):
    """Sines in the first half, cosines in the second; wavelengths in geometric progression from 2 pi to 20,000 pi."""
    half = d // 2
    angles = [position / 10000 ** (i / (half - 1)) for i in range(half)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def attention(query, key, value, num_heads):
    """Equation 1, softmax(Q K^T / sqrt(k)) V, query by query in each head: the result and its weights (h, q, m)."""
    k = query.shape[1] // num_heads
    heads, weights = [], []
    for h in range(num_heads):
        part = slice(h * k, (h + 1) * k)
        rows = []
        for q in query[:, part]:
            scores = np.array([float(q @ key_row) / math.sqrt(k) for key_row in key[:, part]])
            exponentials = np.exp(scores - scores.max())
            rows.append(exponentials / exponentials.sum())
        weights.append(np.array(rows))
        heads.append(weights[-1] @ value[:, part])
    return np.concatenate(heads, axis=1), np.array(weights)


def luna_attention(weights, name, config, x, p, context=None):
    """Equations 3 and 4: Y_P = Attn(P, C), by default with C = X, then Y_X = Attn(X, Y_P) with an output projection."""
    key, value = ("kv", "kv") if config.tie_key_value else ("k", "v")
    context = x if context is None else context
    y_p, pack = attention(
        linear(weights, f"{name}.pack_q_proj", p),
        linear(weights, f"{name}.pack_{key}_proj", context),
        linear(weights, f"{name}.pack_{value}_proj", context),
        config.num_attention_heads,
    )
    y_x, unpack = attention(
        linear(weights, f"{name}.unpack_q_proj", x),
        linear(weights, f"{name}.unpack_{key}_proj", y_p),
        linear(weights, f"{name}.unpack_{value}_proj", y_p),
        config.num_attention_heads,
    )
    return linear(weights, f"{name}.out_proj", y_x), y_p, unpack, pack


def feed_forward(weights, name, x):
    return linear(weights, f"{name}.fc2", gelu(linear(weights, f"{name}.fc1", x)))


def luna_layer(weights, name, config, x, p):
    """Equation 6: X_A = LN(X + Y_X), X' = LN(X_A + FFN(X_A)), P' = LN(P + Y_P); or the same with norms before."""

    def norm(which, value):
        return layer_norm(weights, f"{name}.{which}", value, config.layer_norm_eps)

    if config.norm_first:
        y_x, y_p, unpack, pack = luna_attention(
            weights, f"{name}.attention", config, norm("attention_layer_norm", x), norm("packed_layer_norm", p)
        )
        x_a = x + y_x
        return x_a + feed_forward(weights, name, norm("final_layer_norm", x_a)), p + y_p, unpack, pack
    y_x, y_p, unpack, pack = luna_attention(weights, f"{name}.attention", config, x, p)
    x_a = norm("attention_layer_norm", x + y_x)
    x_new = norm("final_layer_norm", x_a + feed_forward(weights, name, x_a))
    return x_new, norm("packed_layer_norm", p + y_p), unpack, pack


def embed(weights, config, ids, words=None):
    """Embeddings of tokens, whose word embeddings are `words` where they are not the module's own."""
    rows = []
    for i, token in enumerate(ids):
        position = config.pad_token_id + 1 + i
        row = (weights["embeddings.word_embeddings.weight"] if words is None else words)[token]
        if config.position_embedding_type == "sinusoidal":
            row = row * math.sqrt(config.hidden_size) + sinusoid(position, config.hidden_size)
        else:
            row = row + weights["embeddings.position_embeddings.weight"][position]
        rows.append(row)
    return layer_norm(weights, "embeddings.layer_norm", np.array(rows), config.layer_norm_eps)


def embed_packed(weights, config, i, n):
    """The learned P of layer i for a row of n tokens."""
    slots = min(config.projection_length, n) if config.dynamic_projection else config.projection_length
    p = weights[f"packed_embeddings.{i}.weight"][:slots]
    if config.position_embedding_type == "sinusoidal":
        p = p * math.sqrt(config.hidden_size)
        p = p + np.array([sinusoid(slot, config.hidden_size) for slot in range(slots)])
    return layer_norm(weights, f"packed_embeddings.{i}.layer_norm", p, config.layer_norm_eps)


def luna(weights, config, ids, packed_state=None):
    """The encoder. `hidden_states` and `packed_states` have the embedding first; attentions are (h, queries, keys)."""
    x = embed(weights, config, ids)
    p = embed_packed(weights, config, 0, len(ids)) if packed_state is None else packed_state
    hidden_states, packed_states, attentions, pack_attentions = [x], [p], [], []
    for i in range(config.num_hidden_layers):
        if i > 0 and not config.contextual_projection:
            p = embed_packed(weights, config, i, len(ids))
        x, p, unpack, pack = luna_layer(weights, f"layers.{0 if config.share_layer_weights else i}", config, x, p)
        hidden_states.append(x)
        packed_states.append(p)
        attentions.append(unpack)
        pack_attentions.append(pack)
    if config.norm_first:
        x = layer_norm(weights, "final_layer_norm", x, config.layer_norm_eps)
        p = layer_norm(weights, "packed_final_layer_norm", p, config.layer_norm_eps)
    return SimpleNamespace(
        last_hidden_state=x,
        packed_state=p,
        hidden_states=hidden_states,
        packed_states=packed_states,
        attentions=attentions,
        pack_attentions=pack_attentions,
    )


OMEGA = {
    "softplus": lambda x: np.log2(1 + 2**x),
    "softplus_natural": lambda x: np.log(1 + np.exp(x)),
    "elu": lambda x: np.where(x > 0, x + 1, np.exp(x)),
}


def causal_function(x, y, z):
    """Equation 7, token by token: F_t = 1/t X_t sum over j <= t of Y_j^T Z_j."""
    return np.array([x[t] @ sum(np.outer(y[j], z[j]) for j in range(t + 1)) / (t + 1) for t in range(len(x))])


def causal_attention(weights, name, config, x, p):
    """Section 3.3: A_pack = omega(P X^T), A_unpack = softmax(f(X, X, A_pack^T)), Y = f(A_unpack, A_pack^T, X)."""
    key, value = ("kv", "kv") if config.tie_key_value else ("k", "v")
    pack_q, pack_k, q, k, v = (
        linear(weights, f"{name}.{proj}_proj", p if proj == "pack_q" else x)
        for proj in ("pack_q", "pack_k", "unpack_q", f"unpack_{key}", f"unpack_{value}")
    )
    size, heads = x.shape[1] // config.num_attention_heads, []
    for h in range(config.num_attention_heads):
        part = slice(h * size, (h + 1) * size)
        a_pack = OMEGA[config.causal_activation](pack_k[:, part] @ pack_q[:, part].T / math.sqrt(size))
        scores = causal_function(q[:, part] / math.sqrt(size), k[:, part], a_pack)
        a_unpack = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        heads.append(causal_function(a_unpack, a_pack, v[:, part]))
    return linear(weights, f"{name}.out_proj", np.concatenate(heads, axis=1))


def decoder(weights, config, ids, words=None, source=None):
    """The states after the last layer, (n, d); `source` is the encoder's result, or None for a decoder alone."""
    norms = {"eps": config.layer_norm_eps}
    x = embed(weights, config, ids, words)
    p = None if source is None else source.packed_state
    for i in range(config.num_hidden_layers):
        name = f"layers.{0 if config.share_layer_weights else i}"

        def sublayer(norm, stream, function, name=name):
            """LN(X + F(X)), or X + F(LN(X))."""
            if config.norm_first:
                return stream + function(layer_norm(weights, f"{name}.{norm}", stream, **norms))
            return layer_norm(weights, f"{name}.{norm}", stream + function(stream), **norms)

        if source is None or not config.contextual_projection:
            p = embed_packed(weights, config, i, config.projection_length if source is None else len(source.packed_state))
        x = sublayer(
            "self_attention_layer_norm",
            x,
            lambda x, name=name, p=p: causal_attention(weights, f"{name}.self_attention", config, x, p),
        )
        if source is not None:
            of_p = layer_norm(weights, f"{name}.packed_layer_norm", p, **norms) if config.norm_first else p
            read = lambda x, name=name, of_p=of_p: luna_attention(  # noqa: E731
                weights, f"{name}.cross_attention", config, x, of_p, source.last_hidden_state
            )
            y_p = read(x)[1]
            x = sublayer("cross_attention_layer_norm", x, lambda x, read=read: read(x)[0])
            p = p + y_p if config.norm_first else layer_norm(weights, f"{name}.packed_layer_norm", p + y_p, **norms)
        x = sublayer("final_layer_norm", x, lambda x, name=name: feed_forward(weights, name, x))
    return layer_norm(weights, "final_layer_norm", x, **norms) if config.norm_first else x


def causal_lm_logits(weights, config, ids):
    """Scores of `LunaForCausalLM`, from its own state dict."""
    return linear(weights, "lm_head", decoder(encoder_of(weights), config, ids))


def translation_logits(weights, config, ids):
    """Scores of `LunaForConditionalGeneration` for a target that has the ids of the source, from its own state dict."""
    own = {name.removeprefix("decoder."): w for name, w in weights.items() if name.startswith("decoder.")}
    words = weights["luna.embeddings.word_embeddings.weight"] if config.target_vocab_size is None else None
    source = luna(encoder_of(weights), config, ids)
    return linear(weights, "lm_head", decoder(own, config, ids, words, source))


def encoder_of(weights):
    """The weights of the `LunaModel` in a model with a head, or those of the encoder itself."""
    return {name.removeprefix("luna."): w for name, w in weights.items() if name.startswith("luna.")} or weights


def masked_lm_logits(weights, config, ids):
    """Scores of `LunaForMaskedLM`, from its own state dict."""
    x = luna(encoder_of(weights), config, ids).last_hidden_state
    x = layer_norm(weights, "lm_head.layer_norm", gelu(linear(weights, "lm_head.dense", x)), config.layer_norm_eps)
    return linear(weights, "lm_head.decoder", x)


def pool(weights, config, x, p):
    """The sentence representation that a classification head reads, (d,), of one row's X (n, d) and P (l, d)."""
    if config.classifier_pooling == "cls":
        return x[0]
    if config.classifier_pooling == "mean":
        return sum(x) / len(x)
    if config.classifier_pooling == "packed_mean":
        return sum(p) / len(p)
    if config.classifier_pooling == "packed_max":
        return linear(weights, "classifier.in_proj", p).max(axis=0)
    y, _ = attention(
        linear(weights, "classifier.attention.q_proj", x[:1]),
        linear(weights, "classifier.attention.k_proj", p),
        linear(weights, "classifier.attention.v_proj", p),
        config.num_attention_heads,
    )
    y = linear(weights, "classifier.attention.out_proj", y)
    return layer_norm(weights, "classifier.attention.layer_norm", y, config.layer_norm_eps)[0]


def classifier_logits(weights, config, ids):
    """Scores of `LunaForSequenceClassification`, (c,), from its own state dict; of one choice with multiple choice."""
    output = luna(encoder_of(weights), config, ids)
    pooled = pool(weights, config, output.last_hidden_state, output.packed_state)
    return linear(weights, "classifier.out_proj", np.tanh(linear(weights, "classifier.dense", pooled)))


def cross_entropy(logits, labels):
    """Sum over the positions whose label is not -100, in nats."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label != -100:
            total += row.max() + math.log(np.exp(row - row.max()).sum()) - row[label]
    return total
