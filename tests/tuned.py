"""Every choice of tuning methods, and what tests do with a tuned model."""

import torch

from config import (
    LINEAR_NAMES,
    AdaLoRASettings,
    AdapterSettings,
    IA3Settings,
    LlamaAdapterSettings,
    LoRASettings,
    PrefixSettings,
    PromptSettings,
    PTuningSettings,
    TopLayersSettings,
)
from models.sonnet_gpt import SonnetGPT
from optimizer import AdamW, parameter_groups

ALL = ",".join(LINEAR_NAMES)


LORA = LoRASettings(lora_rank=3, lora_alpha=7, lora_dropout=0.0, lora_targets=ALL)


BIASES = LoRASettings(lora_rank=4, lora_dropout=0.0, lora_targets=ALL, lora_rank_stabilized=True, lora_bias="all")


ADALORA = AdaLoRASettings(adalora_start_rank=4, adalora_rank=2, adalora_dropout=0.0)


CHOICES = {
    "lora": {"lora": LORA},
    "lora on query and value": {"lora": LoRASettings(lora_dropout=0.0, lora_targets="query,value")},
    "lora, rank-stabilised, all biases": {"lora": BIASES},
    "lora, its biases": {"lora": LoRASettings(lora_dropout=0.0, lora_bias="lora_only")},
    "qlora": {"qlora": LORA},
    "adalora": {"adalora": ADALORA},
    "ia3": {"ia3": IA3Settings()},
    "ia3 everywhere": {"ia3": IA3Settings(ia3_targets=ALL)},
    "houlsby": {"adapter": AdapterSettings(adapter_size=5)},
    "pfeiffer": {"adapter": AdapterSettings(adapter_size=5, adapter_placement="pfeiffer")},
    "prompt": {"prompt": PromptSettings(prompt_length=7)},
    "ptuning, mlp": {"ptuning": PTuningSettings(ptuning_length=7, ptuning_hidden=6)},
    "ptuning, lstm": {"ptuning": PTuningSettings(ptuning_length=7, ptuning_hidden=6, ptuning_encoder="lstm")},
    "prefix": {"prefix": PrefixSettings(prefix_length=7)},
    "prefix, mlp": {"prefix": PrefixSettings(prefix_length=7, prefix_hidden=6)},
    "llama_adapter": {"llama_adapter": LlamaAdapterSettings(llama_length=5)},
    "llama_adapter, a gate a head": {"llama_adapter": LlamaAdapterSettings(llama_layers=1, llama_gate="head")},
    "bitfit": {"bitfit": None},
    "top_layers": {"top_layers": TopLayersSettings(top_layers_count=2)},
    "lora and houlsby": {"lora": LORA, "adapter": AdapterSettings(adapter_size=5)},
    "adalora, prompt and bitfit": {"adalora": ADALORA, "prompt": PromptSettings(prompt_length=3), "bitfit": None},
    "ia3, houlsby and llama_adapter": {
        "ia3": IA3Settings(),
        "adapter": AdapterSettings(adapter_size=5),
        "llama_adapter": LlamaAdapterSettings(),
    },
    "qlora and prefix": {"qlora": LORA, "prefix": PrefixSettings(prefix_length=7)},
}


SELECTIONS = {"bitfit", "top_layers"}  # these train tensors of the base itself


INPUT_IDS = torch.arange(40).view(2, 20) * 31 % 8600


MASK = torch.ones_like(INPUT_IDS)


def hidden_states(gpt2):
    with torch.no_grad():
        return gpt2(INPUT_IDS)["last_hidden_state"]


def train_a_little(gpt2, steps=3, lr=0.05):
    model = SonnetGPT(gpt2).train()
    optimizer = AdamW(parameter_groups(model, 0.0), lr=lr)
    for _ in range(steps):
        loss, count = model(INPUT_IDS, MASK, return_loss=True)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    gpt2.eval()
