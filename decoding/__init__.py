"""How a text is continued: one idea a file. (generation: the loop over the cache; sampling; rules; beam.)"""

import namesake  # noqa: F401 - before anything imports `datasets`
from decoding.beam import beam_search
from decoding.generation import generate
from decoding.rules import Rules
from decoding.sampling import row_streams, sample, sample_nucleus
from decoding.steps import GPT2Steps

__all__ = ["GPT2Steps", "Rules", "beam_search", "generate", "row_streams", "sample", "sample_nucleus"]
