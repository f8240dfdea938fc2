"""What a report looks at in a trained model: losses of tokens, answers, weights of attention and pooling, updates.

Legend: B batch, H heads, T tokens, L layers, C classes, r rank.
"""

import contextlib

import torch

from datasets import LengthGroupedBatches
from evaluation import logits_of, predict
from modules.attention import reference_attention


def pieces(tokenizer, text, most):
    """(ids of the first tokens, the text cut into one piece for each). most: tokens, at most."""
    encoding = tokenizer.encode(text)
    ends = [end for _, end in encoding.offsets[:most]]
    return encoding.ids[:most], [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@torch.no_grad()
def token_losses(model, tokenizer, text):
    """[(piece, its loss in nats)]; the first token, which nothing comes before, has None. model: SonnetGPT.

    What does not fit into the model's context is left out. (A text that a model wrote may take more tokens to read.)
    """
    ids, words = pieces(tokenizer, text, model.gpt.context)
    ids = torch.tensor([ids])
    log_p = model(ids, torch.ones_like(ids))[0, :-1].float().log_softmax(dim=-1)
    losses = -log_p.gather(-1, ids[0, 1:, None]).squeeze(-1)
    return list(zip(words, [None, *losses.tolist()], strict=True))


@torch.no_grad()
def class_probabilities(model, dataset, batch_size):
    """(N, C): for each row of a dataset with `ids`, in its order, what the model gives its classes."""
    ids, rows = predict(_probabilities, LengthGroupedBatches(dataset, batch_size), model, torch.device("cpu"))
    found = dict(zip(ids, rows, strict=True))
    return torch.stack([found[identifier] for identifier in dataset.ids])


def _probabilities(model, batch, device):
    return logits_of(model, batch, device).float().softmax(dim=-1)


BINS = 10  # of a reliability diagram


def reliability(probabilities, truths):
    """[(lower bound, rows, mean confidence, accuracy)] of the bins that hold rows, and the expected calibration error
    (Guo et al. 2017, arXiv 1706.04599, section 2): the mean distance of the two, weighted by rows."""
    confidence, chosen = probabilities.max(dim=-1)
    right = (chosen == torch.tensor(truths)).float()
    places = (confidence * BINS).long().clamp(max=BINS - 1)
    rows = []
    for place in places.unique().tolist():
        mine = places == place
        rows.append((place / BINS, int(mine.sum()), confidence[mine].mean().item(), right[mine].mean().item()))
    return rows, sum(count * abs(sure - good) for _, count, sure, good in rows) / len(truths)


@torch.no_grad()
def attention_weights(gpt2, tokenizer, text, most):
    """(pieces, (L, H, T, T)): how much each token (row) looks at each (column), virtual tokens left out.

    most: tokens of the text, at most.
    """
    ids, words = pieces(tokenizer, text, min(most, gpt2.context))
    ids, weights = torch.tensor([ids]), []
    with contextlib.ExitStack() as stack:
        for layer in gpt2.gpt_layers:
            stack.enter_context(_recorded(layer.self_attention, weights))
        gpt2(ids, torch.ones_like(ids))
    length = len(words)
    whole = [w[0, :, -length:, -length:] for w in weights if w.size(-1) >= length]  # not LLaMA-Adapter's few prompts
    return words, torch.stack(whole)


@contextlib.contextmanager
def _recorded(attention, weights):
    """Within this context every call of attention.attend adds its weights, (B, H, T, S), to a list."""

    def record(found):
        weights.append(found)
        return found

    attention.attend = lambda query, key, value, mask=None: reference_attention(query, key, value, mask, record)
    try:
        yield
    finally:
        del attention.attend  # the class has its own


@torch.no_grad()
def pooling_weights(model, tokenizer, text):
    """(pieces, (H, T)): what each head of the model's pooling takes of each token; None where it has no weights."""
    if not hasattr(model.pooling, "weights"):
        return None
    ids, words = pieces(tokenizer, text, model.gpt.context)
    ids = torch.tensor([ids])
    hidden = model.gpt(ids, torch.ones_like(ids))["last_hidden_state"]
    weights = model.pooling.weights(hidden, torch.ones_like(ids).bool())
    return words, torch.stack([w[0] if w.dim() == 2 else w[0].mean(dim=-1) for w in weights])


@torch.no_grad()
def alignment(model, tokenizer, token_ids, token_types):
    """[(piece, the other question's piece that it takes most of, the cosine of what it takes)] for a pair's prompt.

    token_ids, token_types: (T,), as the dataset has them; outside of the questions, and where there is no other one,
    there are two None. model: a ParaphraseGPT with aligned pooling.
    """
    words = [tokenizer.decode([token]) for token in token_ids.tolist()]
    embeddings = model.pooling.word_norm(model.gpt.word_embedding(token_ids[None].long()))
    weights, cosines = (found[0] for found in model.pooling.align(embeddings, token_types[None].long()))
    taken = weights.any(dim=-1).tolist()
    best, cosine = weights.argmax(dim=-1).tolist(), (weights * cosines).sum(dim=-1).tolist()
    return [
        (word, words[best[place]], cosine[place]) if taken[place] else (word, None, None)
        for place, word in enumerate(words)
    ]


@torch.no_grad()
def low_rank_updates(gpt2):
    """{(layer, linear): (singular values of its update, r of them; the update's norm over the weight's)} of LoRAs.

    An update is s B A or, of AdaLoRA, s B E A. Its singular values are those of the small product of both factors' R
    (QR decomposition).
    """
    updates = {}
    for place, module in _linears_with(gpt2, "lora_A"):
        inner = module.lora_A * module.lora_E if hasattr(module, "lora_E") else module.lora_A
        right = torch.linalg.qr(inner.float().T).R
        left = torch.linalg.qr(module.lora_B.float()).R
        values = module.scaling * torch.linalg.svdvals(left @ right.T)
        norm = values.norm() / module.plain().weight.float().norm()
        updates[place] = values.tolist(), norm.item()
    return updates


def final_ranks(gpt2):
    """{(layer, linear): triplets that are left} of AdaLoRA; {} of anything else."""
    return {place: int((module.lora_E != 0).sum()) for place, module in _linears_with(gpt2, "lora_E")}


def _linears_with(gpt2, factor):
    """((layer, linear), its module) of every module that has this factor."""
    for number, layer in enumerate(gpt2.gpt_layers):
        for name, module in layer.named_modules():
            if hasattr(module, factor):
                yield (number, name.split(".")[-1]), module
