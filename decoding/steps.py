"""A model as decoders see it: the logits of every row's next token, from a cache, one step after the other.

    steps.limit           new tokens that there is room for
    steps.logits          (B, V) of the next token of every row
    steps.advance(tokens) the rows' next tokens are these, (B,): the logits move on
    steps.select(rows)    keep these rows, in this order; a row may come twice
    steps.move(a, b)      rows b become copies of rows a, of the same prompt

Legend: B rows in the batch, T new positions, D width, V vocabulary.
"""

import torch

from datasets.batching import pad
from errors import UserError
from modules.kv_cache import KVCache

VOCABULARY_BLOCK = 2048  # tokens


def next_token_logits(embedding, hidden_states):
    """h E^T: (V, D), (B, D) -> (B, V). On the CPU, blocks of the vocabulary times a few rows run a third faster than
    one product."""
    if hidden_states.device.type != "cpu":
        return hidden_states @ embedding.t()
    return torch.cat([block @ hidden_states.t() for block in embedding.split(VOCABULARY_BLOCK)]).t()


class GPT2Steps:
    """GPT-2 that continues prompts (lists of token ids, none empty) as one left-padded batch.

    head: (B, D) -> (B, V), of a model that was packed for writing (modules/packed.py). Raises UserError if the longest
    prompt leaves no room in the model's context.
    """

    def __init__(self, gpt2, prompts, max_new_tokens, head=None):
        longest, context = max(map(len, prompts)), gpt2.context
        if longest >= context:
            raise UserError(
                f"a prompt of {longest} tokens leaves no room in the model's context of {context}: shorten it"
            )
        self.gpt2, self.head, self.limit = gpt2, head, min(max_new_tokens, context - longest)
        device = gpt2.word_embedding.weight.device
        input_ids, self.mask = (x.to(device) for x in pad(prompts, pad_id=0, side="left"))
        capacity = longest + self.limit + gpt2.config.max_position_embeddings - context  # room for virtual tokens, too
        self.cache = KVCache(len(gpt2.gpt_layers), capacity)
        self.logits = self._next(input_ids)
        self.prompt_end = self.cache.length

    @torch.no_grad()
    def _next(self, input_ids):
        hidden = self.gpt2(input_ids, self.mask, self.cache)["last_hidden_state"][:, -1]
        return self.head(hidden) if self.head else next_token_logits(self.gpt2.word_embedding.weight, hidden)

    def advance(self, tokens):
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        self.logits = self._next(tokens[:, None].to(self.mask.device))

    def select(self, rows):
        rows = rows.to(self.mask.device)
        self.cache.select(rows)
        self.mask, self.logits = self.mask[rows], self.logits[rows]

    def move(self, sources, targets):
        self.cache.move(sources, targets, self.prompt_end)  # up to there they are alike


class TransformerSteps:
    """An encoder-decoder Transformer that translates sources: the encoder runs once, and keys and values of the cross
    attention are computed once a sentence.

    source_ids, source_mask: (B, S). start: the token that every target begins with. limit: tokens of a target at most.
    """

    def __init__(self, model, source_ids, source_mask, start, limit):
        self.model, self.mask, self.limit = model, source_mask, limit
        self.cache = KVCache(len(model.decoder_layers), limit)
        with torch.no_grad():
            self.sources = model.encode(source_ids, source_mask)
        self.advance(torch.full((len(source_ids),), start, device=source_ids.device))

    @torch.no_grad()
    def advance(self, tokens):
        tokens = tokens[:, None].to(self.mask.device)
        hidden = self.model.decode(tokens, self.sources, self.mask, cache=self.cache)[:, -1]
        self.logits = next_token_logits(self.model.output_embedding.weight, hidden)

    def select(self, rows):
        rows = rows.to(self.mask.device)
        self.cache.select(rows)
        self.sources = [(keys[rows], values[rows]) for keys, values in self.sources]
        self.mask, self.logits = self.mask[rows], self.logits[rows]

    def move(self, sources, targets):
        self.cache.move(sources, targets)  # the source is the same: its keys and values stay where they are
