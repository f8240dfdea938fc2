"""Every setting of the project: model sizes, token ids, and one dataclass for each group of flags.

The flags of the two task scripts are made from these dataclasses (`parse_flags`), so a setting has one name, one
default, one help text and one check, whether it comes from the shell, from a saved run or from a test. Nothing heavy
is imported here: `python sonnet_generation.py --help` answers before torch would have loaded.
"""

import argparse
import dataclasses
import math
import os
import sys
import typing
from dataclasses import dataclass, field, fields
from types import UnionType

NO_TOKEN_ID, YES_TOKEN_ID = 3919, 8505  # the tokens "no" and "yes" of GPT-2's vocabulary: the paraphrase answers
END_OF_TEXT = "<|endoftext|>"

MODEL_SIZES = {  # name: (hub repository, hidden_size, num_hidden_layers, num_attention_heads)
    "distilgpt2": ("distilbert/distilgpt2", 768, 6, 12),
    "gpt2": ("openai-community/gpt2", 768, 12, 12),
    "gpt2-medium": ("openai-community/gpt2-medium", 1024, 24, 16),
    "gpt2-large": ("openai-community/gpt2-large", 1280, 36, 20),
    "gpt2-xl": ("openai-community/gpt2-xl", 1600, 48, 25),
}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout_prob")  # of GPT2Config
LINEAR_NAMES = ("query", "key", "value", "attention_dense", "interm_dense", "out_dense")  # the six linears of a layer


class UserError(Exception):
    """Something the user can mend. Its text is one line: what is wrong, what to do. Scripts exit with code 2."""


@dataclass
class GPT2Config:
    """Shape and constants of a GPT-2 (Radford et al. 2019). The defaults are the small model's, 124M parameters."""

    vocab_size: int = 50257
    max_position_embeddings: int = 1024
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None  # None means 4 * hidden_size
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    embedding_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    eos_token_id: int = 50256

    def __post_init__(self):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def of_size(cls, name):
        """The configuration of a released size, for instance of_size("gpt2-medium")."""
        _, width, layers, heads = MODEL_SIZES[name]
        return cls(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads)


# ---------------------------------------------------------------------------------------------------------------------
# Settings: each dataclass is a group of flags; its docstring is the group's heading in --help
# ---------------------------------------------------------------------------------------------------------------------


def flag(default, help, choices=None, requires=None):
    """A dataclass field that becomes a flag.

    choices: the allowed values. requires: (other field, value, ...): the flag means something only when that field has
    one of these values, and is refused otherwise, so that no flag is ever silently ignored.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "requires": requires})


def check(condition, message):
    if not condition:
        raise UserError(message)


def check_outputs(data, outputs):
    """No output file of a data group may be another one of its files: it would be lost."""
    paths = {setting.name: getattr(data, setting.name) for setting in fields(data) if setting.type is str}
    for name in outputs:
        for other in paths.keys() - {name}:
            same = os.path.abspath(paths[name]) == os.path.abspath(paths[other])
            check(not same, f"--{name} and --{other} are the same file {paths[name]}: choose another")


@dataclass
class ModelSettings:
    """model"""

    model_size: str = flag("gpt2", "size of the pretrained GPT-2, fetched once from the Hugging Face hub", MODEL_SIZES)
    model_path: str | None = flag(None, "local folder in Hugging Face layout, used instead of --model_size")
    dropout: float | None = flag(None, "dropout of the backbone; by default what the model's own config says (0.1)")

    def __post_init__(self):
        check(self.dropout is None or 0 <= self.dropout < 1, f"--dropout must be in [0, 1), got {self.dropout}")


@dataclass
class StepSettings:
    """What every kind of training shares; no group of flags of its own."""

    seed: int = flag(11711, "seeds the batches, dropout and sampling; the same seed gives the same run")
    batch_size: int = flag(8, "rows a step (on every device)")
    lr: float | None = flag(
        None, "peak learning rate; by default the tuning method's own (full 1e-5, LoRA 2e-4, adapter 1e-4)"
    )
    weight_decay: float = flag(0.0, "decoupled weight decay, never on biases and LayerNorm")
    schedule: str = flag("linear", "learning rate after the warm-up", ("constant", "linear", "cosine"))
    warmup_ratio: float = flag(0.05, "share of all steps over which the learning rate rises from 0")
    gradient_accumulation: int = flag(1, "batches whose gradients are added up before each step")
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0 switches clipping off")
    beta2: float = flag(0.999, "AdamW's decay rate of the squared gradients; smaller forgets sooner")
    use_gpu: bool = flag(False, "train on the GPU (CUDA, or Apple's MPS)")
    precision: str = flag("auto", "auto takes bf16 only where the hardware has it natively", ("auto", "fp32", "bf16"))

    def __post_init__(self):
        for name in ("batch_size", "gradient_accumulation"):
            check(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        check(self.lr is None or 0 < self.lr < math.inf, f"--lr must be positive, got {self.lr}")
        check(0 <= self.warmup_ratio <= 1, f"--warmup_ratio must be in [0, 1], got {self.warmup_ratio}")
        check(0 <= self.beta2 < 1, f"--beta2 must be in [0, 1), got {self.beta2}")
        for name in ("seed", "weight_decay", "max_grad_norm"):
            check(getattr(self, name) >= 0, f"--{name} must not be negative, got {getattr(self, name)}")


@dataclass
class TrainingSettings(StepSettings):
    """training"""

    epochs: int = flag(10, "passes over the training data")
    patience: int = flag(0, "stop after this many epochs without a better score; 0 never stops early")

    def __post_init__(self):
        super().__post_init__()
        check(self.epochs >= 1, f"--epochs must be at least 1, got {self.epochs}")
        check(self.patience >= 0, f"--patience must not be negative, got {self.patience}")


@dataclass
class PretrainingSettings(StepSettings):
    """training"""

    steps: int = flag(6000, "optimizer steps in all")
    eval_every: int = flag(250, "steps between two measurements on held-out text; a stopped run goes on from the last")
    batch_size: int = flag(8, "rows of --context tokens a step (on every device)")
    lr: float = flag(1.5e-3, "peak learning rate; smaller for larger models (GPT-2 small: 6e-4)")
    weight_decay: float = flag(0.1, "decoupled weight decay, never on biases and LayerNorm")
    schedule: str = flag("cosine", "learning rate after the warm-up", ("constant", "linear", "cosine"))
    beta2: float = flag(0.99, "AdamW's decay rate of the squared gradients; smaller forgets sooner")

    def __post_init__(self):
        super().__post_init__()
        for name in ("steps", "eval_every"):
            check(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        check(
            self.steps % self.eval_every == 0,
            f"--steps {self.steps} is no multiple of --eval_every {self.eval_every}: choose one",
        )

    @property
    def epochs(self):
        """For the training loop an epoch is the stretch between two measurements."""
        return self.steps // self.eval_every

    patience = 0  # no field: pre-training always takes all its steps


@dataclass
class RunSettings:
    """run folder"""

    run_dir: str | None = flag(None, "folder of this run's checkpoints and metrics; by default a new one under runs/")
    resume: bool = flag(False, "continue the run in --run_dir (or the newest one) after its last complete epoch")
    checkpoint: str | None = flag(None, "do not train: load this run's best epoch and predict")

    def __post_init__(self):
        check(not (self.resume and self.checkpoint), "--resume trains on, --checkpoint only predicts: give one of them")


TUNING_METHODS = {  # name: one line for --help; modules/tuning.py says what each does
    "lora": "low-rank updates of the linears",
    "qlora": "LoRA over linears frozen in 4 bits",
    "adalora": "low-rank updates whose ranks move to where they matter",
    "ia3": "a learned factor for each key, value and hidden feature",
    "adapter": "small bottlenecks after the sublayers",
    "prompt": "learned word vectors before the text",
    "ptuning": "the same, written by a small network",
    "prefix": "learned keys and values in every layer",
    "llama_adapter": "learned prompts in the top layers, behind gates that start at zero",
    "bitfit": "the biases only",
    "top_layers": "the last layers only",
}
EXCLUSIVE = (  # of these at most one, and why
    (("lora", "qlora", "adalora", "ia3"), "each replaces the linears of a layer"),
    (("prefix", "llama_adapter"), "both change what a layer attends to, and there is one place for that"),
    (("prompt", "ptuning", "prefix"), "each claims the first positions of the text"),
    (("qlora", "top_layers"), "what is stored in 4 bits cannot be trained"),
)


@dataclass
class TuningSettings:
    """tuning: what is trained; without any of these, all of GPT-2"""

    tuning: tuple = flag(
        (),
        "tuning method, or several that combine: " + "; ".join(f"{k}: {v}" for k, v in TUNING_METHODS.items()),
        TUNING_METHODS,
    )
    lora: bool = flag(False, "short for --tuning lora")
    adapter: bool = flag(False, "short for --tuning adapter")

    def __post_init__(self):
        self.tuning = tuple(self.tuning)
        for names, reason in EXCLUSIVE:
            both = [name for name in self.methods if name in names]
            check(len(both) < 2, f"--tuning {' '.join(both)}: they do not combine, {reason}; choose one")

    @property
    def methods(self):
        """The chosen methods' names, each once."""
        short = [name for name in ("lora", "adapter") if getattr(self, name)]
        return list(dict.fromkeys([*self.tuning, *short]))


def linear_names(text, flag_name):
    """The linears of a comma-separated flag, each once. Raises UserError."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in LINEAR_NAMES]
    check(not unknown, f"--{flag_name}: no linear {unknown}; choose from {','.join(LINEAR_NAMES)}")
    check(names, f"--{flag_name} is empty; choose from {','.join(LINEAR_NAMES)}")
    return names


@dataclass
class LoRASettings:
    """LoRA: low-rank updates of the linears (Hu et al. 2021); QLoRA: over a 4-bit base (Dettmers et al. 2023)"""

    lora_rank: int = flag(4, "r, the rank of the update", requires=("tuning", "lora", "qlora"))
    lora_alpha: float = flag(16.0, "the update is scaled by alpha / r", requires=("tuning", "lora", "qlora"))
    lora_dropout: float = flag(
        0.05, "dropout on the input of the LoRA branch only", requires=("tuning", "lora", "qlora")
    )
    lora_targets: str = flag(
        "query,value,interm_dense",
        f"comma-separated linears to adapt, out of {','.join(LINEAR_NAMES)}",
        requires=("tuning", "lora", "qlora"),
    )
    lora_rank_stabilized: bool = flag(
        False, "scale by alpha / sqrt(r) (Kalajdzievski 2023)", requires=("tuning", "lora", "qlora")
    )
    lora_bias: str = flag(
        "none",
        "biases to train as well: those of the adapted linears, or all of GPT-2's",
        ("none", "lora_only", "all"),
        requires=("tuning", "lora", "qlora"),
    )

    def __post_init__(self):
        check(self.lora_rank >= 1, f"--lora_rank must be at least 1, got {self.lora_rank}")
        check(0 < self.lora_alpha < math.inf, f"--lora_alpha must be positive, got {self.lora_alpha}")
        check(0 <= self.lora_dropout < 1, f"--lora_dropout must be in [0, 1), got {self.lora_dropout}")
        linear_names(self.lora_targets, "lora_targets")

    @property
    def targets(self):
        """The targets as a list, without repetitions."""
        return linear_names(self.lora_targets, "lora_targets")

    @property
    def scaling(self):
        return self.lora_alpha / (self.lora_rank**0.5 if self.lora_rank_stabilized else self.lora_rank)


@dataclass
class AdaLoRASettings:
    """AdaLoRA: a budget of ranks, spent where it matters (Zhang et al. 2023)"""

    adalora_start_rank: int = flag(12, "rank of every update at the start", requires=("tuning", "adalora"))
    adalora_rank: int = flag(8, "mean rank of the updates at the end", requires=("tuning", "adalora"))
    adalora_alpha: float = flag(32.0, "the update is scaled by alpha / start rank", requires=("tuning", "adalora"))
    adalora_dropout: float = flag(0.05, "dropout on the input of the update only", requires=("tuning", "adalora"))
    adalora_targets: str = flag(
        ",".join(LINEAR_NAMES), "comma-separated linears to adapt", requires=("tuning", "adalora")
    )
    adalora_warmup: float = flag(0.1, "share of the steps before ranks are taken away", requires=("tuning", "adalora"))
    adalora_final: float = flag(
        0.3, "share of the steps at the end with the ranks as they are", requires=("tuning", "adalora")
    )
    adalora_interval: int = flag(10, "steps between two allocations", requires=("tuning", "adalora"))
    adalora_penalty: float = flag(0.5, "weight of the orthogonality penalty", requires=("tuning", "adalora"))

    def __post_init__(self):
        check(
            1 <= self.adalora_rank <= self.adalora_start_rank,
            f"--adalora_rank must be between 1 and --adalora_start_rank, got {self.adalora_rank} "
            f"and {self.adalora_start_rank}",
        )
        check(0 < self.adalora_alpha < math.inf, f"--adalora_alpha must be positive, got {self.adalora_alpha}")
        check(0 <= self.adalora_dropout < 1, f"--adalora_dropout must be in [0, 1), got {self.adalora_dropout}")
        check(
            min(self.adalora_warmup, self.adalora_final) >= 0 and self.adalora_warmup + self.adalora_final < 1,
            "--adalora_warmup and --adalora_final are shares of the steps: together less than 1",
        )
        check(self.adalora_interval >= 1, f"--adalora_interval must be at least 1, got {self.adalora_interval}")
        check(self.adalora_penalty >= 0, f"--adalora_penalty must not be negative, got {self.adalora_penalty}")
        linear_names(self.adalora_targets, "adalora_targets")

    @property
    def targets(self):
        return linear_names(self.adalora_targets, "adalora_targets")


@dataclass
class IA3Settings:
    """(IA)^3: learned factors (Liu et al. 2022)"""

    ia3_targets: str = flag(
        "key,value,out_dense",
        "comma-separated linears; out_dense's input is scaled, the others' output",
        requires=("tuning", "ia3"),
    )

    def __post_init__(self):
        linear_names(self.ia3_targets, "ia3_targets")

    @property
    def targets(self):
        return linear_names(self.ia3_targets, "ia3_targets")


@dataclass
class AdapterSettings:
    """adapters: small bottlenecks after the sublayers (Houlsby et al. 2019, Pfeiffer et al. 2021)"""

    adapter_size: int = flag(64, "m, the width of the bottleneck", requires=("tuning", "adapter"))
    adapter_placement: str = flag(
        "houlsby",
        "houlsby: after attention and after the feed-forward; pfeiffer: after the feed-forward only",
        ("houlsby", "pfeiffer"),
        requires=("tuning", "adapter"),
    )

    def __post_init__(self):
        check(self.adapter_size >= 1, f"--adapter_size must be at least 1, got {self.adapter_size}")


@dataclass
class PromptSettings:
    """prompt tuning (Lester et al. 2021)"""

    prompt_length: int = flag(20, "P, the number of virtual tokens", requires=("tuning", "prompt"))

    def __post_init__(self):
        check(self.prompt_length >= 1, f"--prompt_length must be at least 1, got {self.prompt_length}")


@dataclass
class PTuningSettings:
    """P-tuning (Liu et al. 2021)"""

    ptuning_length: int = flag(20, "P, the number of virtual tokens", requires=("tuning", "ptuning"))
    ptuning_encoder: str = flag("mlp", "the network that writes them", ("mlp", "lstm"), requires=("tuning", "ptuning"))
    ptuning_hidden: int = flag(128, "h, its width", requires=("tuning", "ptuning"))

    def __post_init__(self):
        for name in ("ptuning_length", "ptuning_hidden"):
            check(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class PrefixSettings:
    """prefix tuning (Li & Liang 2021)"""

    prefix_length: int = flag(20, "P, learned positions in every layer", requires=("tuning", "prefix"))
    prefix_hidden: int = flag(
        0, "width of the MLP that writes them while training; 0: no MLP", requires=("tuning", "prefix")
    )

    def __post_init__(self):
        check(self.prefix_length >= 1, f"--prefix_length must be at least 1, got {self.prefix_length}")
        check(self.prefix_hidden >= 0, f"--prefix_hidden must be 0 (no MLP) or more, got {self.prefix_hidden}")


@dataclass
class LlamaAdapterSettings:
    """LLaMA-Adapter (Zhang et al. 2023)"""

    llama_length: int = flag(10, "P, prompt vectors a layer", requires=("tuning", "llama_adapter"))
    llama_layers: int = flag(
        0, "the top layers that get them; 0: all but the first", requires=("tuning", "llama_adapter")
    )
    llama_gate: str = flag(
        "scalar", "one gate a layer, or one a head", ("scalar", "head"), requires=("tuning", "llama_adapter")
    )

    def __post_init__(self):
        check(self.llama_length >= 1, f"--llama_length must be at least 1, got {self.llama_length}")
        check(self.llama_layers >= 0, f"--llama_layers must be 0 (all but the first) or more, got {self.llama_layers}")


@dataclass
class TopLayersSettings:
    """top layers only"""

    top_layers_count: int = flag(2, "how many of the last layers are trained", requires=("tuning", "top_layers"))

    def __post_init__(self):
        check(self.top_layers_count >= 1, f"--top_layers_count must be at least 1, got {self.top_layers_count}")


@dataclass
class InferenceSettings:
    """prediction"""

    eval_batch_size: int = flag(32, "rows a batch when no gradient is needed")
    merge: bool = flag(False, "fold LoRA into the weights before predicting (same predictions, no extra cost)")

    def __post_init__(self):
        check(self.eval_batch_size >= 1, f"--eval_batch_size must be at least 1, got {self.eval_batch_size}")


@dataclass
class PoolingSettings:
    """pooling: how the hidden states of a pair become one vector"""

    pooling: str = flag(
        "last",
        "last token; mean or max over time; attention (Linear, tanh, softmax); generalized (Chen et al. 2018)",
        ("last", "mean", "max", "attention", "generalized"),
    )
    pooling_heads: int = flag(1, "heads of generalized pooling, concatenated", requires=("pooling", "generalized"))
    pooling_hidden: int = flag(128, "width of its W1", requires=("pooling", "generalized"))
    pooling_penalty: str = flag(
        "none",
        "what keeps the heads apart: their W1, their attention or their vectors",
        ("none", "parameters", "attention", "embeddings"),
        requires=("pooling", "generalized"),
    )
    pooling_penalty_weight: float = flag(0.01, "mu of the penalty", requires=("pooling", "generalized"))
    pooling_penalty_margin: float = flag(1.0, "lambda of the penalty", requires=("pooling", "generalized"))

    def __post_init__(self):
        check(self.pooling_heads >= 1, f"--pooling_heads must be at least 1, got {self.pooling_heads}")
        check(self.pooling_hidden >= 1, f"--pooling_hidden must be at least 1, got {self.pooling_hidden}")
        check(
            self.pooling_penalty == "none" or self.pooling_heads > 1,
            f"--pooling_penalty {self.pooling_penalty} compares heads: give --pooling_heads 2 or more",
        )


SAMPLED = ("sample", "mbr", "template")  # the ways of decoding that draw tokens
TAG_SETS = ("penn", "universal", "content", "word")  # of the templates, ever coarser


@dataclass
class DecodingSettings:
    """decoding: how a sonnet is continued"""

    decode: str = flag(
        "sample",
        "sample: draw every token; greedy: the most probable token; beam: search for the most probable text; mbr: of "
        "several samples the one most like the others (minimum Bayes risk); template: sample words that fit "
        "part-of-speech templates of real lines",
        ("sample", "greedy", "beam", "mbr", "template"),
    )
    form: str = flag(
        "free",
        "free: the text ends where the model ends it, after line 14 at the latest; sonnet: exactly 14 lines of a sane "
        "length, and syllables and rhymes are reported",
        ("free", "sonnet"),
        requires=("decode", "sample", "greedy", "beam", "mbr"),
    )
    temperature: float = flag(
        1.2, "softmax temperature; below 1 safer, above 1 bolder, 0 means greedy", requires=("decode", *SAMPLED)
    )
    top_p: float = flag(
        0.9,
        "nucleus: sample from the smallest set of tokens with this probability mass",
        requires=("decode", *SAMPLED),
    )
    top_k: int = flag(0, "sample from the k most probable tokens only; 0 means all", requires=("decode", *SAMPLED))
    min_p: float = flag(
        0.0,
        "strike tokens less probable than this share of the most probable one",
        requires=("decode", *SAMPLED),
    )
    repetition_penalty: float = flag(1.0, "divide the logits of tokens that have occurred by this; 1 does nothing")
    no_repeat_ngram: int = flag(0, "never write a sequence of this many tokens twice; 0 allows all")
    max_new_tokens: int = flag(256, "give up on line 14 after this many new tokens")
    num_samples: int | None = flag(
        None,
        "samples a prompt, of which one is kept: the one with the highest mean log-probability or, with --decode mbr, "
        "the highest mean chrF against the others (default: 1; with mbr 8)",
        requires=("decode", *SAMPLED),
    )
    beams: int = flag(4, "beams a prompt", requires=("decode", "beam"))
    length_penalty: float = flag(
        1.0,
        "a text's log-probability is divided by its length to this power; larger favours longer texts",
        requires=("decode", "beam"),
    )
    early_stopping: str = flag(
        "false",
        "end a search when as many texts as beams are finished (true), when none of this length can become better "
        "(false), or when none of any length can (never)",
        ("false", "true", "never"),
        requires=("decode", "beam"),
    )
    templates: str | None = flag(
        None,
        "file of templates, a line each; by default they are taken from the training sonnets and saved as "
        "templates.txt in the run folder",
        requires=("decode", "template"),
    )
    template_tags: str = flag(
        "penn",
        "how fine the tags are: Penn Treebank's, the universal tag set's 12, content and function words, or any word",
        TAG_SETS,
        requires=("decode", "template"),
    )

    def __post_init__(self):
        check(self.temperature >= 0, f"--temperature must be 0 (greedy) or more, got {self.temperature}")
        check(0 < self.top_p <= 1, f"--top_p must be in (0, 1], got {self.top_p}")
        check(self.top_k >= 0, f"--top_k must be 0 (all tokens) or more, got {self.top_k}")
        check(0 <= self.min_p <= 1, f"--min_p must be in [0, 1], got {self.min_p}")
        check(
            0 < self.repetition_penalty < math.inf,
            f"--repetition_penalty must be positive, got {self.repetition_penalty}",
        )
        check(self.no_repeat_ngram >= 0, f"--no_repeat_ngram must be 0 (off) or more, got {self.no_repeat_ngram}")
        check(self.max_new_tokens >= 1, f"--max_new_tokens must be at least 1, got {self.max_new_tokens}")
        least, why = (3, " with --decode mbr, which compares them") if self.decode == "mbr" else (1, "")
        check(self.samples >= least, f"--num_samples must be at least {least}{why}, got {self.samples}")
        check(self.beams >= 1, f"--beams must be at least 1, got {self.beams}")
        check(math.isfinite(self.length_penalty), f"--length_penalty must be a number, got {self.length_penalty}")

    @property
    def draws(self):
        """Whether tokens are drawn, so that another seed is another text."""
        return self.decode in SAMPLED

    @property
    def samples(self):
        """How many samples a prompt gets. A --num_samples saved with a run counts only where tokens are drawn."""
        if not self.draws:
            return 1
        return (8 if self.decode == "mbr" else 1) if self.num_samples is None else self.num_samples


@dataclass
class SonnetData:
    """data"""

    sonnet_path: str = flag("data/sonnets.txt", "training sonnets")
    held_out_sonnet_path: str = flag("data/sonnets_held_out.txt", "prompts: sonnets of three lines to be completed")
    sonnet_out: str = flag("predictions/generated_sonnets.txt", "where the completed sonnets go")
    gold_sonnet_path: str = flag(
        "data/TRUE_sonnets_held_out_dev.txt",
        "whole dev sonnets: their loss picks the best epoch, their first three lines are completed and scored; "
        "where this file is missing, a tenth of the training sonnets is kept aside for it",
    )
    sonnet_dev_out: str = flag("predictions/generated_sonnets_dev.txt", "where the completed dev sonnets go")
    score_seeds: int = flag(3, "complete the dev sonnets with this many seeds and report mean and deviation of chrF")

    def __post_init__(self):
        check(self.score_seeds >= 1, f"--score_seeds must be at least 1, got {self.score_seeds}")
        check_outputs(self, ("sonnet_out", "sonnet_dev_out"))


@dataclass
class ParaphraseData:
    """data"""

    para_train: str = flag("data/quora-train.csv", "training pairs")
    para_dev: str = flag("data/quora-dev.csv", "dev pairs: their accuracy picks the best epoch")
    para_test: str = flag("data/quora-test-student.csv", "test pairs, without labels")
    swap_questions: bool = flag(
        False, "train on every pair in both orders: twice the rows, for the question is the same"
    )
    para_dev_out: str = flag("predictions/para-dev-output.csv", "where the dev predictions go")
    para_test_out: str = flag("predictions/para-test-output.csv", "where the test predictions go")

    def __post_init__(self):
        check_outputs(self, ("para_dev_out", "para_test_out"))


@dataclass
class AugmentationSettings:
    """augmentation: more training pairs, made from those there are (never from dev or test)"""

    augment: tuple = flag(
        (),
        "eda: a few words of every question replaced, inserted, swapped or left out (Wei & Zou 2019); "
        "back_translation: every question translated and translated back (Sennrich et al. 2016)",
        ("eda", "back_translation"),
    )
    eda_alpha: float = flag(0.1, "share of a question's words that changes", requires=("augment", "eda"))
    eda_copies: int = flag(1, "changed copies of every pair", requires=("augment", "eda"))
    wordnet: str | None = flag(
        None,
        "folder of WordNet's files; by default where nltk or Debian's wordnet-base keep them",
        requires=("augment", "eda"),
    )
    bt_forward: str = flag(
        "Helsinki-NLP/opus-mt-en-fr",
        "Marian model out of English: a name on the hub, or a folder",
        requires=("augment", "back_translation"),
    )
    bt_backward: str = flag(
        "Helsinki-NLP/opus-mt-fr-en", "Marian model back into English", requires=("augment", "back_translation")
    )
    bt_beams: int = flag(
        4, "beams of both translations; 1 is several times faster", requires=("augment", "back_translation")
    )
    bt_batch_size: int = flag(32, "questions translated at a time", requires=("augment", "back_translation"))
    bt_cache: str = flag(
        "runs/back_translations.sqlite",
        "file that keeps all translations, for the next run and after a stop",
        requires=("augment", "back_translation"),
    )

    def __post_init__(self):
        self.augment = tuple(dict.fromkeys(self.augment))
        check(0 < self.eda_alpha <= 1, f"--eda_alpha must be in (0, 1], got {self.eda_alpha}")
        for name in ("eda_copies", "bt_beams", "bt_batch_size"):
            check(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class HeadSettings:
    """answer"""

    head: str = flag(
        "cloze",
        'cloze: the logits of "no" and "yes" from the tied embedding, no new parameters; linear: a new two-way layer',
        ("cloze", "linear"),
    )
    lm_weight: float = flag(
        0.0,
        "weight of an auxiliary language-model loss on the prompts, as in Radford et al. (2018, 3.2), who took 0.5; "
        "steps are slower with it",
    )

    def __post_init__(self):
        check(0 <= self.lm_weight < math.inf, f"--lm_weight must be 0 (off) or more, got {self.lm_weight}")


@dataclass
class CorpusData:
    """data"""

    corpus: str = flag("corpus", "folder of UTF-8 .txt files (subfolders included); each file is one document")
    held_out: str = flag(
        "",
        "comma-separated files of that folder to measure on, kept out of training; "
        "by default the last hundredth of every file",
    )
    out: str | None = flag(
        None, "where the finished model goes, in Hugging Face layout; by default model/ in the run folder"
    )
    save_dtype: str = flag(
        "float32", "number format of the saved weights; half takes half the space", ("float32", "float16")
    )

    @property
    def held_out_names(self):
        return [name.strip() for name in self.held_out.split(",") if name.strip()]


@dataclass
class ShapeSettings:
    """model: by default one of 5.5 million parameters, for an hour or two on a CPU"""

    vocab_size: int = flag(8960, 'tokens of the byte-level BPE; more than 8505, the id of "yes"')
    context: int = flag(256, "tokens the model sees at once (GPT-2: 1024)")
    layers: int = flag(4, "number of layers (GPT-2: 12)")
    hidden_size: int = flag(256, "width (GPT-2: 768)")
    heads: int = flag(4, "attention heads (GPT-2: 12)")
    dropout: float = flag(0.0, "dropout while pre-training; the saved model says 0.1, as GPT-2, for its fine-tuning")

    def __post_init__(self):
        check(
            self.vocab_size > YES_TOKEN_ID + 1,
            f'--vocab_size must be at least {YES_TOKEN_ID + 2}, so that "yes" can have id {YES_TOKEN_ID} as in '
            f"GPT-2 and <|endoftext|> come last; got {self.vocab_size}",
        )
        for name in ("layers", "hidden_size", "heads"):
            check(getattr(self, name) >= 1, f"--{name} must be at least 1, got {getattr(self, name)}")
        check(self.context >= 2, f"--context must be at least 2, got {self.context}")
        check(
            self.hidden_size % self.heads == 0,
            f"--hidden_size {self.hidden_size} is no multiple of --heads {self.heads}: choose one",
        )
        check(0 <= self.dropout < 1, f"--dropout must be in [0, 1), got {self.dropout}")


@dataclass
class PretrainSettings:
    """Pre-train a GPT-2 of any size from scratch on a folder of text files; save it in Hugging Face layout."""

    data: CorpusData = field(default_factory=CorpusData)
    shape: ShapeSettings = field(default_factory=ShapeSettings)
    training: PretrainingSettings = field(default_factory=PretrainingSettings)
    run: RunSettings = field(default_factory=RunSettings)


@dataclass
class TaskSettings:
    """What both tasks have in common."""

    model: ModelSettings = field(default_factory=ModelSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    lora: LoRASettings = field(default_factory=LoRASettings)
    adalora: AdaLoRASettings = field(default_factory=AdaLoRASettings)
    ia3: IA3Settings = field(default_factory=IA3Settings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    ptuning: PTuningSettings = field(default_factory=PTuningSettings)
    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    llama_adapter: LlamaAdapterSettings = field(default_factory=LlamaAdapterSettings)
    top_layers: TopLayersSettings = field(default_factory=TopLayersSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    run: RunSettings = field(default_factory=RunSettings)


@dataclass
class SonnetSettings(TaskSettings):
    """Fine-tune GPT-2 on sonnets, complete the held-out ones from their first three lines, score them with chrF."""

    data: SonnetData = field(default_factory=SonnetData)
    decoding: DecodingSettings = field(default_factory=DecodingSettings)


@dataclass
class ParaphraseSettings(TaskSettings):
    """Fine-tune GPT-2 to tell whether two questions ask the same, and write yes (8505) or no (3919) for every pair."""

    data: ParaphraseData = field(default_factory=ParaphraseData)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    pooling: PoolingSettings = field(default_factory=PoolingSettings)

    def __post_init__(self):
        check(
            self.head.head == "linear" or self.pooling.pooling_heads == 1,
            "--head cloze reads one vector of the model's width: use --pooling_heads 1, or --head linear",
        )


# ---------------------------------------------------------------------------------------------------------------------
# From dataclasses to flags and back
# ---------------------------------------------------------------------------------------------------------------------


class FlagParser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print the whole usage; the one line that matters would be lost in it
        raise UserError(f"{message} (--help lists the flags)")


def parse_flags(settings_class, arguments=None):
    """Settings from the command line (or from a list of arguments).

    Returns (settings, given): `given` holds the names of the flags that the user typed. Raises UserError.
    """
    parser = FlagParser(
        description=settings_class.__doc__,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        argument_default=argparse.SUPPRESS,  # absent flags stay absent: the dataclasses know the defaults
        allow_abbrev=False,
    )
    for group in sorted(fields(settings_class), key=lambda group: group.name != "data"):  # the data first
        section = parser.add_argument_group(group.type.__doc__)
        for setting in fields(group.type):
            section.add_argument(f"--{setting.name}", **_argparse_options(setting))
    given = vars(parser.parse_args(arguments))
    _refuse_idle_flags(settings_class, given)
    groups = {
        group.name: {s.name: given[s.name] for s in fields(group.type) if s.name in given}
        for group in fields(settings_class)
    }
    return settings_from_dict(settings_class, groups), set(given)


def _argparse_options(setting):
    help_text = setting.metadata["help"].replace("%", "%%")
    if setting.type is bool:
        return {"action": "store_true", "help": help_text}
    if setting.type is tuple:
        return {"nargs": "+", "choices": tuple(setting.metadata["choices"]), "metavar": "NAME", "help": help_text}
    if setting.default not in (None, ""):
        help_text += f" (default: {setting.default})"
    kinds = typing.get_args(setting.type) if isinstance(setting.type, UnionType) else (setting.type,)
    options = {"type": kinds[0], "help": help_text}
    if setting.metadata["choices"]:
        return options | {"choices": tuple(setting.metadata["choices"])}
    return options | {"metavar": {int: "N", float: "X", str: "TEXT"}[kinds[0]]}


def _refuse_idle_flags(settings_class, given):
    everything = [setting for group in fields(settings_class) for setting in fields(group.type)]
    chosen = {setting.name: (setting.default,) for setting in everything}
    chosen |= {name: value if isinstance(value, (tuple, list)) else (value,) for name, value in given.items()}
    if "tuning" in chosen:
        chosen["tuning"] = TuningSettings(**{n: given[n] for n in ("tuning", "lora", "adapter") if n in given}).methods
    for setting in everything:
        if setting.name in given and setting.metadata["requires"]:
            other, *allowed = setting.metadata["requires"]
            if not set(chosen[other]) & set(allowed):
                switch = f"--{other} {'|'.join(allowed)}"
                raise UserError(f"--{setting.name} has no effect without {switch}: add it, or leave the flag out")


def settings_from_dict(settings_class, values):
    """The inverse of dataclasses.asdict for nested settings, as kept in a run's settings.json. Raises UserError."""
    groups = {}
    for group in fields(settings_class):
        known = {setting.name for setting in fields(group.type)}
        unknown = set(values.get(group.name, {})) - known
        check(not unknown, f"unknown settings {sorted(unknown)} in group {group.name}")
        groups[group.name] = group.type(**values.get(group.name, {}))
    return settings_class(**groups)


def settings_to_dict(settings):
    return dataclasses.asdict(settings)


def run_script(main, *arguments):
    """Call main(*arguments). A UserError becomes one line on stderr and exit code 2; other errors are bugs and show."""
    try:
        return main(*arguments)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; complete epochs are kept: the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
