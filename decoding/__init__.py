"""How a text is continued: one idea a file. (generation: the loop over the cache; sampling; rules; beam.)"""

from decoding.beam import beam_search
from decoding.generation import generate, next_token_logits
from decoding.rules import Rules
from decoding.sampling import row_streams, sample, sample_nucleus

__all__ = ["Rules", "beam_search", "generate", "next_token_logits", "row_streams", "sample", "sample_nucleus"]
