"""Key-value cache for generation: keys and values of past positions are computed once and kept.

Preallocated at the final length and written in place, so that a step copies T new rows and nothing else. Room is made
when the first keys come: their batch, heads, dtype and device are the cache's, so that nobody need know them before.

Legend: B batch, T new positions, S positions so far, M capacity, H heads, d width of a head.
"""


class LayerKVCache:
    """Keys and values of one layer, each (B, H, M, d), filled up to `length`."""

    def __init__(self, capacity):
        self.capacity, self.length = capacity, 0
        self.keys = self.values = None

    def update(self, key, value):
        """Append (B, H, T, d) each and return everything so far, (B, H, S, d) each, as views."""
        end = self.length + key.size(2)
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} are needed")
        if self.keys is None:
            shape = (*key.shape[:2], self.capacity, key.size(3))
            self.keys, self.values = key.new_zeros(shape), value.new_zeros(shape)
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One LayerKVCache for each layer of a model. capacity: positions to make room for, prompt included."""

    def __init__(self, num_layers, capacity):
        self.layers = [LayerKVCache(capacity) for _ in range(num_layers)]

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
