"""Key-value cache for generation: keys and values of past positions are computed once and kept.

Preallocated at the final length and written in place, so that a step copies T new rows and nothing else.

Legend: B batch, T new positions, S positions so far, M capacity, H heads, d width of a head.
"""

import torch


class LayerKVCache:
    """Keys and values of one layer, each (B, H, M, d), filled up to `length`."""

    def __init__(self, batch_size, num_heads, capacity, head_size, dtype, device):
        self.keys = torch.zeros(batch_size, num_heads, capacity, head_size, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def update(self, key, value):
        """Append (B, H, T, d) each and return everything so far, (B, H, S, d) each, as views."""
        end = self.length + key.size(2)
        if end > self.keys.size(2):
            raise ValueError(f"the cache holds {self.keys.size(2)} positions, {end} are needed")
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One LayerKVCache for each layer of a model.

    capacity: positions to make room for, prompt included. The dtype is the one that the linears put out.
    """

    def __init__(self, config, batch_size, capacity, dtype=torch.float32, device="cpu"):
        head_size = config.hidden_size // config.num_attention_heads
        self.layers = [
            LayerKVCache(batch_size, config.num_attention_heads, capacity, head_size, dtype, device)
            for _ in range(config.num_hidden_layers)
        ]

    @property
    def length(self):
        return self.layers[0].length

    def move(self, sources, targets, start=0):
        """Copy rows over other rows, from a position on: where the earlier ones are alike, as in a beam search."""
        for layer in self.layers:
            for kept in (layer.keys, layer.values):
                kept[targets, :, start : layer.length] = kept[sources, :, start : layer.length]

    def select(self, rows):
        """Keep these rows, in this order (a LongTensor; a row may come twice). Used when texts are finished."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
