"""GPT-2 (Radford et al. 2019): embeddings, a stack of layers, a final LayerNorm. No task, no tuning method.

Legend: B batch, T new positions, S positions so far (cached ones included), D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from formats.hugging_face import load_pretrained
from modules.attention import attention_mask_for
from modules.dropout import Dropout
from modules.gpt2_layer import GPT2Layer
from modules.pooling import last_token


class GPT2Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_dropout = Dropout(config.embedding_dropout_prob)
        self.gpt_layers = nn.ModuleList(GPT2Layer(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.prompt = None  # slot: called as prompt(self, input_ids, attention_mask, cache), calls embed and transform
        self._init_weights()

    def forward(self, input_ids, attention_mask=None, cache=None):
        """Hidden states of a batch of token ids.

        input_ids: (B, T). attention_mask: (B, S), 1 at real tokens, 0 at padding on either side; None: no padding.
        cache: KVCache with the S - T earlier positions; the new ones are added to it.
        Returns last_hidden_state (B, T, D), after the final LayerNorm, and last_token (B, D), the hidden state of each
        row's last real token. Hidden states at padding positions are finite and mean nothing.
        """
        if self.prompt is None:
            past = cache.length if cache is not None else 0
            hidden_states = self.transform(self.embed(input_ids, attention_mask, past), attention_mask, cache)
        else:
            hidden_states = self.prompt(self, input_ids, attention_mask, cache)
        return {"last_hidden_state": hidden_states, "last_token": last_token(hidden_states, attention_mask)}

    def embed(self, input_ids, attention_mask=None, past=0, offset=0):
        """(B, T) -> (B, T, D): word plus position embeddings. Positions count real tokens only (left padding).

        past: tokens before these. offset: the position of the first one.
        """
        length, context = past + input_ids.size(1), self.config.max_position_embeddings - offset
        if length > context:
            raise UserError(f"{length} tokens do not fit: the model's context is {context} tokens")
        if attention_mask is None:
            positions = torch.arange(past, length, device=input_ids.device)
        else:
            positions = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]
        return self.embed_dropout(self.word_embedding(input_ids) + self.pos_embedding(positions + offset))

    def transform(self, hidden_states, attention_mask=None, cache=None):
        """(B, T, D) -> (B, T, D): all layers and the final LayerNorm. attention_mask: (B, S), as in `forward`."""
        past, new = cache.length if cache is not None else 0, hidden_states.size(1)
        mask = None if attention_mask is None else attention_mask_for(attention_mask, new)
        if mask is None and past and new > 1:
            mask = torch.ones(1, 1, new, past + new, dtype=torch.bool, device=hidden_states.device).tril(past)
        for index, layer in enumerate(self.gpt_layers):
            hidden_states = layer(hidden_states, mask, cache.layers[index] if cache is not None else None)
        return self.final_layer_norm(hidden_states)

    @property
    def context(self):
        """How many tokens of text fit: all positions, less those that a tuning method takes."""
        return self.config.max_position_embeddings - (0 if self.prompt is None else self.prompt.length)

    def hidden_state_to_token(self, hidden_states):
        """(..., D) -> (..., V): logits over the vocabulary through the tied word embedding, h E^T."""
        return F.linear(hidden_states, self.word_embedding.weight)

    @classmethod
    def from_pretrained(cls, model="gpt2", d=None, l=None, num_heads=None, **overrides):  # noqa: E741
        """GPT-2 with released or your own weights.

        model: a released size ("gpt2", "gpt2-medium", ...), a hub repository, or a local folder in Hugging Face layout.
        d, l, num_heads: width, layers and heads; not needed, and checked against the model's own config when given.
        overrides: fields of GPT2Config to change, for instance hidden_dropout_prob=0.3.
        Raises UserError for a model that is not found, or whose tensors do not all fit.
        """
        gpt2 = load_pretrained(cls, model, **overrides)
        for name, wanted in (("hidden_size", d), ("num_hidden_layers", l), ("num_attention_heads", num_heads)):
            if wanted is not None and getattr(gpt2.config, name) != wanted:
                raise UserError(f"{model} has {name} {getattr(gpt2.config, name)}, not {wanted}")
        return gpt2

    def _init_weights(self):
        """Normal(0, 0.02), biases 0; projections into the residual stream scaled by 1/sqrt(2 layers), as GPT-2."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                into_residual = name.endswith(("attention_dense.weight", "out_dense.weight"))
                nn.init.normal_(
                    parameter, std=std / (2 * self.config.num_hidden_layers) ** 0.5 if into_residual else std
                )
