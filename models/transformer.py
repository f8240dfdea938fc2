"""The original Transformer (Vaswani et al. 2017), and a parallel one: how the decoder's layers meet the encoder's.

    base      decoder layer i attends to the output of the last encoder layer
    parallel  decoder layer i attends to the output of encoder layer i: both stacks run side by side

Both have the same parameters. *Layer teacher forcing* (training only): the input of a decoder layer is, with some
probability, the embedding of the target instead of the layer below. It is drawn for every sentence and layer by itself.
(The report that this answers drew once for a whole batch, and at inference, too.)

Legend: B batch, T target positions, S source positions, D width, V vocabulary.
"""

import math

import torch
from torch import nn

from modules.attention import attention_mask_for
from modules.dropout import Dropout
from modules.linear_cross_entropy import linear_cross_entropy
from modules.transformer_layers import DecoderLayer, EncoderLayer, sinusoids


class Transformer(nn.Module):
    def __init__(self, config):
        """config: TransformerConfig."""
        super().__init__()
        self.config = config
        self.source_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        tied = config.tied_embeddings
        self.target_embedding = self.source_embedding if tied == "all" else self._embedding()
        self.output_embedding = self.target_embedding if tied in ("all", "target") else self._embedding()
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.encoder_layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self._init_weights()

    def forward(self, source_ids, source_mask, target_ids, target_mask=None):
        """Hidden states (B, T, D) after the last decoder layer.

        source_ids, source_mask: (B, S); target_ids, target_mask: (B, T); masks are 1 at real tokens, 0 at padding on
        either side, whose hidden states mean nothing.
        """
        return self.decode(target_ids, self.encode(source_ids, source_mask), source_mask, target_mask)

    def encode(self, source_ids, source_mask):
        """The keys and values that each decoder layer attends to: a list of pairs of (B, H, S, d)."""
        x, mask, outputs = self.embed(self.source_embedding, source_ids, source_mask), _looks(source_mask), []
        for layer in self.encoder_layers:
            x = layer(x, mask)
            outputs.append(x)
        if self.config.wiring == "base":
            outputs = outputs[-1:] * len(outputs)
        return [
            layer.cross_attention.keys_and_values(output)
            for layer, output in zip(self.decoder_layers, outputs, strict=True)
        ]

    def decode(self, target_ids, sources, source_mask, target_mask=None, cache=None):
        """(B, T) -> (B, T, D). sources: as from `encode`. cache: KVCache with the earlier positions.

        target_mask: as in `forward`; None: no padding.
        """
        past = cache.length if cache is not None else 0
        embedded = self.embed(self.target_embedding, target_ids, target_mask, past)
        mask = None if target_mask is None else attention_mask_for(target_mask, target_ids.size(1))
        x, source_mask = embedded, _looks(source_mask)
        for index, layer in enumerate(self.decoder_layers):
            if index:
                x = self._forced(x, embedded)
            x = layer(x, sources[index], source_mask, mask, cache.layers[index] if cache is not None else None)
        return x

    def embed(self, embedding, token_ids, mask=None, past=0):
        """(B, T) -> (B, T, D): sqrt(D) times the embedding (section 3.4) plus the sinusoids; positions count real
        tokens only. past: tokens before these."""
        if mask is None:
            positions = torch.arange(past, past + token_ids.size(1), device=token_ids.device)
        else:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        width = self.config.hidden_size
        return self.dropout(math.sqrt(width) * embedding(token_ids) + sinusoids(positions, width))

    def _forced(self, x, embedded):
        """Layer teacher forcing: with its probability a sentence's layer input is the embedding of the target."""
        probability = self.config.layer_teacher_forcing
        if not self.training or not probability:
            return x
        forced = torch.rand(len(x), 1, 1) < probability  # on the CPU: the same draws on every device
        return torch.where(forced.to(x.device), embedded, x)

    def _embedding(self):
        return nn.Embedding(self.config.vocab_size, self.config.hidden_size)

    def _init_weights(self):
        """Linears as Glorot & Bengio (2010), biases 0, embeddings normal(0, 1 / sqrt(D)): so that, times sqrt(D), they
        are as large as the sinusoids, and logits start small. Query, key and value start smaller by sqrt(2), as those
        of torch and of fairseq, which draw the three as one matrix: with post-LayerNorm deep stacks learn otherwise
        hardly to look at the source."""
        for name, parameter in self.named_parameters():
            if "embedding" in name:
                nn.init.normal_(parameter, std=self.config.hidden_size**-0.5)
            elif name.endswith(("query.weight", "key.weight", "value.weight")):
                nn.init.xavier_uniform_(parameter, gain=2**-0.5)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)


def _looks(mask):
    """(B, S), 1 at real tokens -> (B, 1, 1, S) boolean: every query may look at every real token."""
    return mask.bool()[:, None, None, :]


def translation_loss(model, batch, smoothing=0.0):
    """(sum of the losses in nats, number of target tokens) of a batch, as the training loop wants it.

    batch: source_ids, source_mask, target_ids, target_mask; a target is the start token, its tokens, the end token.
    """
    inputs, mask = batch["target_ids"][:, :-1], batch["target_mask"][:, :-1]
    hidden = model(batch["source_ids"], batch["source_mask"], inputs, mask)
    real = batch["target_mask"][:, 1:].bool()
    embedding = model.output_embedding.weight
    return linear_cross_entropy(hidden[real], embedding, batch["target_ids"][:, 1:][real], smoothing), real.sum()
