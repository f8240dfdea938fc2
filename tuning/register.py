"""The register of parameter-efficient tuning methods: a name, a line, and that line says all that other code asks.

To add a method: write modules/NAME.py with its module (which lists what it trains in `tuning_parameters()`) and its
apply function, give it a line in TUNING_METHODS and a settings class in config.py, and add one line to METHODS here.
Attaching, freezing, saving, loading, merging and the default rate follow.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

from config import TUNING_METHODS, TaskSettings
from errors import check
from formats import peft
from modules.adalora import RankAllocator, adalora_penalty, apply_adalora
from modules.adapter import apply_adapter
from modules.ia3 import apply_ia3
from modules.llama_adapter import apply_llama_adapter
from modules.lora import apply_lora
from modules.prefix import apply_prefix
from modules.prompt import apply_prompt, apply_ptuning
from modules.quantization import apply_qlora

FULL_LEARNING_RATE = 1e-5  # full fine-tuning, where no method is chosen
HEAD_LEARNING_RATE = 1e-3  # what stands on a frozen GPT-2, alone; the course's


@dataclass(frozen=True)
class Method:
    """settings: the name of its group of flags, None where it has none. learning_rate: its own sound default.

    in_peft: what it is in peft's terms, or in words why it cannot be said there.
    apply(gpt2, settings): attaches it. select(gpt2, settings): parameters of the backbone itself that it trains.
    merges: whether it can be folded into plain linears. whole: why it cannot be trained sharded (--shard).
    penalty(gpt2, settings): a term of the training loss.
    after_step(gpt2, settings) -> function(step, total_steps): called after every optimizer step, counted from 1, while
    the gradients are there.
    """

    settings: str | None
    learning_rate: float
    in_peft: peft.Form | str
    apply: Callable | None = None
    select: Callable | None = None
    merges: bool = False
    whole: str = ""
    penalty: Callable | None = None
    after_step: Callable | None = None

    def __post_init__(self):
        if not (self.apply or self.select):
            raise TypeError("a method must apply something, or select what is trained")
        if not isinstance(self.in_peft, peft.Form | str):
            raise TypeError("a method must say what it is in peft, or why it cannot be said there")
        if self.settings not in (None, *(group.name for group in fields(TaskSettings))):
            raise TypeError(f"config.TaskSettings has no group {self.settings}")


def all_biases(gpt2, settings=None):
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): every bias, those of the LayerNorms included."""
    return [p for name, p in gpt2.named_parameters() if name.endswith(".bias") and p.dim() == 1]


def lora_biases(gpt2, settings):
    """--lora_bias all: the biases of the whole backbone. (lora_only is the adapted linears' own matter.)"""
    return all_biases(gpt2) if settings.lora_bias == "all" else []


def top_layers(gpt2, settings):
    """The last layers as they are (the FT-Top2 of Hu et al. 2021, section 5.1). Raises UserError."""
    count, layers = settings.top_layers_count, len(gpt2.gpt_layers)
    check(count <= layers, f"--top_layers_count {count}: the model has {layers} layers; give at most so many")
    return list(gpt2.gpt_layers[layers - count :].parameters())


METHODS = {
    "lora": Method("lora", 2e-4, peft.LORA, apply_lora, lora_biases, merges=True),
    "qlora": Method(
        "lora",
        2e-4,
        peft.LORA,
        apply_qlora,
        lora_biases,
        merges=True,
        whole="its base is packed into buffers of 4 bits, and only parameters are split",
    ),
    "adalora": Method(
        "adalora",
        1e-3,
        peft.ADALORA,
        apply_adalora,
        merges=True,
        whole="it compares the gradients of whole factors after every step",
        penalty=adalora_penalty,
        after_step=RankAllocator,
    ),
    "ia3": Method("ia3", 3e-3, peft.IA3, apply_ia3, merges=True),
    "adapter": Method("adapter", 1e-4, "peft has no bottleneck adapters", apply_adapter),
    "prompt": Method("prompt", 1e-2, peft.PROMPT_TUNING, apply_prompt),
    "ptuning": Method("ptuning", 1e-3, peft.P_TUNING, apply_ptuning),
    "prefix": Method("prefix", 1e-3, peft.PREFIX_TUNING, apply_prefix),
    "llama_adapter": Method(
        "llama_adapter",
        9e-3,
        "peft's LLaMA-Adapter for GPT-2 adds its term after the output projection and without tanh",
        apply_llama_adapter,
    ),
    "bitfit": Method(
        None,
        1e-3,
        "peft has no method that trains biases alone; merge it and use the whole model",
        select=all_biases,
        merges=True,
    ),
    "top_layers": Method(
        "top_layers",
        1e-4,
        "peft has no method that trains whole layers; merge it and use the whole model",
        select=top_layers,
        merges=True,
    ),
}
if list(METHODS) != list(TUNING_METHODS):
    raise TypeError(f"config.TUNING_METHODS names {list(TUNING_METHODS)}, tuning.register.METHODS {list(METHODS)}")


def chosen_methods(settings):
    """{name: its settings} of the methods chosen in a script's settings, in the register's order."""
    chosen = settings.tuning.methods
    groups = {name: method.settings for name, method in METHODS.items() if name in chosen}
    return {name: group and getattr(settings, group) for name, group in groups.items()}


def default_learning_rate(methods, frozen=False):
    """The methods' own learning rate; the smallest where they combine, full fine-tuning's where there are none.

    frozen: GPT-2 has no method, and is not trained either.
    """
    if frozen:
        return HEAD_LEARNING_RATE
    return min((METHODS[name].learning_rate for name in methods), default=FULL_LEARNING_RATE)
