"""What ours is timed against, beside transformers: a GPT-2 as nanoGPT has it, and CTranslate2 where it is installed."""

import contextlib
import functools
import importlib.util
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class FusedGPT2(nn.Module):
    """GPT-2 the way nanoGPT has it: one product for query, key and value, torch's fused attention, plain causal, logits
    of the whole batch at once. For the time of a step only: it loads no weights."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.words, self.positions = (
            nn.Embedding(n, width) for n in (config.vocab_size, config.max_position_embeddings)
        )
        self.layers = nn.ModuleList(_FusedLayer(config) for _ in range(config.num_hidden_layers))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(config.embedding_dropout_prob)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids):
        """(B, T) -> the mean cross entropy of the next tokens."""
        x = self.dropout(self.words(ids) + self.positions.weight[: ids.size(1)])
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.words.weight)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


class _FusedLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.p = config.num_attention_heads, config.attention_probs_dropout_prob
        self.norm1, self.qkv, self.dense = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        x = x + self.dropout(self.dense(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh")))


def fused_step(model, optimizer, batch):
    """A training step of FusedGPT2: clipped, torch's AdamW."""
    loss = model(batch["token_ids"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@contextlib.contextmanager
def ctranslate2_writers(model, prompts, new_tokens, temperature, top_p):
    """{name: function that samples} of CTranslate2 in fp32 and in 8 bits, with a GPT2LMHeadModel's weights.

    prompts: (B, T) token ids. Gives {} where it is not installed.
    """
    if importlib.util.find_spec("ctranslate2") is None:
        yield {}
        return
    import ctranslate2

    tokens = [[f"t{i}" for i in row] for row in prompts.tolist()]
    options = {"max_length": new_tokens, "min_length": new_tokens, "sampling_topk": 0, "sampling_topp": top_p}
    options |= {"sampling_temperature": temperature, "include_prompt_in_result": False}
    with tempfile.TemporaryDirectory() as folder:
        _convert(model, Path(folder) / "converted")
        writers = {}
        for kind in ("float32", "int8"):
            generator = ctranslate2.Generator(
                str(Path(folder) / "converted"), compute_type=kind, intra_threads=torch.get_num_threads()
            )
            writers[f"CTranslate2, {kind}"] = functools.partial(_write, generator, tokens, options)
        yield writers


def _write(generator, tokens, options):
    results = generator.generate_batch(tokens, **options)
    lengths = {len(result.sequences_ids[0]) for result in results}
    assert lengths == {options["max_length"]}, f"it wrote {lengths} tokens"


def _convert(model, folder):
    """As CTranslate2's own converter does it, but from a model in memory and with numbers for words."""
    from ctranslate2.converters.transformers import GPT2Loader

    spec = GPT2Loader().get_model_spec(model)
    words = [f"t{i}" for i in range(model.config.vocab_size)]
    spec.register_vocabulary(words)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = words[-1]
    spec.validate()
    spec.optimize()
    folder.mkdir()
    spec.save(str(folder))
