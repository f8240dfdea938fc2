"""How a text is continued: one idea a file. (generation: the loop over the cache; sampling; filters; beam.)"""

from decoding.beam import beam_search
from decoding.generation import generate, next_token_logits
from decoding.sampling import row_streams, sample, sample_nucleus

__all__ = ["beam_search", "generate", "next_token_logits", "row_streams", "sample", "sample_nucleus"]
