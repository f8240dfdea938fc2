"""Choosing among several samples of a prompt: by mean log-probability, or by minimum Bayes risk.

Minimum Bayes risk (Kumar & Byrne 2004; with samples as pseudo-references Eikema & Aziz 2020, arXiv 2005.10283, section
6): take the sample with the highest mean utility against the others; here the utility is chrF.
"""

import torch
import torch.nn.functional as F
from sacrebleu.metrics import CHRF


@torch.no_grad()
def mean_log_probabilities(gpt2, prompts, continuations):
    """The mean of log p of every continuation's tokens in nats, a list; 0 for an empty one. Both: lists of token ids.

    p is the model's own probability, before temperature and filters. One forward pass, row after row: no padding.
    """
    means = []
    for prompt, new_ids in zip(prompts, continuations, strict=True):
        if not new_ids:
            means.append(0.0)
            continue
        ids = torch.tensor([[*prompt, *new_ids]], device=gpt2.word_embedding.weight.device)
        hidden = gpt2(ids[:, :-1])["last_hidden_state"][0, -len(new_ids) :]
        logits = gpt2.hidden_state_to_token(hidden).float()
        means.append(-F.cross_entropy(logits, ids[0, -len(new_ids) :]).item())
    return means


def mean_chrf_against_others(texts):
    """For every text its mean sentence chrF against the others, [0, 100]; 0 where there are no others."""
    metric = CHRF()
    return [
        sum(metric.sentence_score(text, [other]).score for other in others) / max(1, len(others))
        for text, others in ((text, texts[:place] + texts[place + 1 :]) for place, text in enumerate(texts))
    ]
