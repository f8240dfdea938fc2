"""The key-value cache against a whole pass."""

import pytest
import torch

from modules.kv_cache import KVCache


def test_logits_of_cached_chunks_equal_a_whole_pass(gpt2):
    ids = torch.randint(0, 8600, (3, 17))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for attention_mask in (mask, None):
        cache = KVCache(len(gpt2.gpt_layers), 17)
        with torch.no_grad():
            whole = gpt2(ids, attention_mask)["last_hidden_state"]
            pieces = []
            for start, end in ((0, 5), (5, 6), (6, 13), (13, 17)):
                seen = None if attention_mask is None else attention_mask[:, :end]
                pieces.append(gpt2(ids[:, start:end], seen, cache)["last_hidden_state"])
        real = mask.bool() if attention_mask is not None else torch.ones_like(mask).bool()
        torch.testing.assert_close(torch.cat(pieces, 1)[real], whole[real], atol=1e-5, rtol=1e-5)


def test_the_cache_refuses_to_overflow(gpt2):
    cache = KVCache(len(gpt2.gpt_layers), 4)
    with pytest.raises(ValueError, match="holds 4 positions, 5 are needed"):
        gpt2(torch.zeros(1, 5, dtype=torch.long), cache=cache)
