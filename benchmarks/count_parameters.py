"""How many parameters each tuning method trains, at each size of GPT-2, counted on models without memory.

python -m benchmarks.count_parameters        the table of docs/methods.md
"""

import torch

from config import (
    AdaLoRASettings,
    AdapterSettings,
    GPT2Config,
    IA3Settings,
    LlamaAdapterSettings,
    LoRASettings,
    PrefixSettings,
    PromptSettings,
    PTuningSettings,
    TopLayersSettings,
)
from models.gpt2 import GPT2Model
from tuning.attach import attach, detach
from tuning.state import count_parameters

SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
ROWS = {  # with the scripts' defaults, but where a row says otherwise
    "full fine-tuning": {},
    "LoRA, r = 4 (query, value, interm_dense)": {"lora": LoRASettings()},
    "LoRA, r = 4 (query, value)": {"lora": LoRASettings(lora_targets="query,value")},
    "QLoRA, r = 4": {"qlora": LoRASettings()},
    "AdaLoRA, r = 12 to 8 (all six linears)": {"adalora": AdaLoRASettings()},
    "(IA)^3": {"ia3": IA3Settings()},
    "Houlsby adapters, m = 64": {"adapter": AdapterSettings()},
    "Pfeiffer adapters, m = 64": {"adapter": AdapterSettings(adapter_placement="pfeiffer")},
    "prompt tuning, P = 20": {"prompt": PromptSettings()},
    "P-tuning, P = 20, MLP": {"ptuning": PTuningSettings()},
    "P-tuning, P = 20, LSTM": {"ptuning": PTuningSettings(ptuning_encoder="lstm")},
    "prefix tuning, P = 20": {"prefix": PrefixSettings()},
    "prefix tuning, P = 20, MLP of 512": {"prefix": PrefixSettings(prefix_hidden=512)},
    "LLaMA-Adapter, P = 10": {"llama_adapter": LlamaAdapterSettings()},
    "BitFit": {"bitfit": None},
    "top 2 layers": {"top_layers": TopLayersSettings()},
}


def counts(size):
    """{title: parameters trained}"""
    numbers = {}
    with torch.device("meta"):
        gpt2 = GPT2Model(GPT2Config.of_size(size))
        for title, methods in sorted(ROWS.items(), key=lambda row: "qlora" in row[1]):
            attach(gpt2, methods)
            numbers[title] = count_parameters(gpt2)[0]
            detach(gpt2)  # (QLoRA's base stays quantised: it comes last)
    return numbers


def table():
    """Markdown lines."""
    columns = [counts(size) for size in SIZES]
    lines = ["| trained parameters | " + " | ".join(SIZES) + " |", "|---|" + "---:|" * len(SIZES)]
    return lines + [f"| {title} | " + " | ".join(f"{column[title]:,}" for column in columns) + " |" for title in ROWS]


if __name__ == "__main__":
    print("\n".join(table()))
