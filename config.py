"""Every setting of the project: the sizes and names of the model, and one dataclass for each group of flags.

A line is a setting: its default, its help, and all that is checked of it (cli/flags.py says what a line can say, and
makes the flags, the checks and the saved form from it). `relate` only holds what relates two settings.
"""

from dataclasses import dataclass

from cli.flags import Script, Settings, check_outputs, flag, group, split_names
from errors import check

ANSWERS = {"no": 3919, "yes": 8505}  # the paraphrase answers, class 0 and class 1: their ids in GPT-2's vocabulary
END_OF_TEXT = "<|endoftext|>"
CLASSES = {"sst": 5, "cfimdb": 2}  # the sentiment data sets, in the course's order, and how many classes each has

MODEL_SIZES = {  # name: (hub repository, hidden_size, num_hidden_layers, num_attention_heads)
    "distilgpt2": ("distilbert/distilgpt2", 768, 6, 12),
    "gpt2": ("openai-community/gpt2", 768, 12, 12),
    "gpt2-medium": ("openai-community/gpt2-medium", 1024, 24, 16),
    "gpt2-large": ("openai-community/gpt2-large", 1280, 36, 20),
    "gpt2-xl": ("openai-community/gpt2-xl", 1600, 48, 25),
}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout_prob")  # of GPT2Config
LINEAR_NAMES = ("query", "key", "value", "attention_dense", "interm_dense", "out_dense")  # the six linears of a layer
LINEARS = ("linear", LINEAR_NAMES)
SCHEDULES = ("constant", "linear", "cosine", "inverse_sqrt")


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
        check(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}",
        )

    @classmethod
    def of_size(cls, name):
        """The configuration of a released size, for instance of_size("gpt2-medium")."""
        _, width, layers, heads = MODEL_SIZES[name]
        return cls(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads)


@dataclass
class TransformerConfig:
    """Shape and constants of an encoder-decoder Transformer (Vaswani et al. 2017). wiring, tied_embeddings,
    layer_teacher_forcing: as in TransformerShape."""

    vocab_size: int
    hidden_size: int = 128
    num_hidden_layers: int = 4  # of the encoder, and of the decoder
    num_attention_heads: int = 4
    intermediate_size: int = 256
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = 0.3
    attention_probs_dropout_prob: float = 0.0
    wiring: str = "base"
    tied_embeddings: str = "all"
    layer_teacher_forcing: float = 0.0


# --- what the tasks share ---------------------------------------------------------------------------------------------


class ModelSettings(Settings):
    """model"""

    model_size: str = flag(
        "gpt2",
        "size of the pretrained GPT-2, fetched once from the Hugging Face hub",
        MODEL_SIZES,
        free_on_resume=True,
        elsewhere="model model_name",
    )
    model_path: str | None = flag(
        None,
        "local folder in Hugging Face layout, instead of a size",
        instead_of="model_size",
        free_on_resume=True,
        reads=True,
    )
    dropout: float | None = flag(None, "dropout of the backbone; by default the model's own (0.1)", "[0, 1)")


class StepSettings(Settings, training_only=True, from_flags="when predicting"):
    """What every kind of training shares; no group of flags of its own."""

    shard = compile = False  # no flags: only where a model may be large

    seed: int = flag(
        11711, "of batches, dropout and sampling; the same seed gives the same run", "[0, inf)", training_only=False
    )
    lr: float | None = flag(
        None,
        "peak learning rate; by default the method's own (full 1e-5, LoRA 2e-4)",
        "(0, inf)",
        free_on_resume="after divergence",
        elsewhere="learning_rate",
    )
    weight_decay: float = flag(0.0, "decoupled weight decay, never on biases and LayerNorm", "[0, inf)")
    schedule: str = flag("linear", "learning rate after the warm-up", SCHEDULES)
    warmup_ratio: float = flag(0.05, "share of all steps over which the learning rate rises from 0", "[0, 1]")
    gradient_accumulation: int = flag(1, "batches whose gradients are added up before each step", "[1, inf)")
    save_minutes: float = flag(
        10.0,
        "keep where training stands this often, within epochs, too; 0: after epochs only",
        "[0, inf)",
        free_on_resume=True,
        elsewhere="save_steps",
    )
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0 switches clipping off", "[0, inf)")
    beta2: float = flag(0.999, "AdamW's decay rate of the squared gradients; smaller forgets sooner", "[0, 1)")
    use_gpu: bool = flag(
        False,
        "train on the GPU (CUDA, or Apple's MPS)",
        training_only=False,
        free_on_resume=True,
        elsewhere="gpu cuda device mps",
    )
    precision: str = flag(
        "auto",
        "auto takes bf16 where the hardware has it natively, else fp16 on CUDA and fp32 on all else; in bf16 and fp16 "
        "texts and answers can change with the batch size, in fp32 they do not",
        ("auto", "fp32", "bf16", "fp16"),
        training_only=False,
        elsewhere="fp16 bf16 fp32 mixed_precision",
    )


ROWS = "rows a batch (--batch_size times processes)"
TRAIN_ROWS = "train on so many rows only, drawn by the seed: for a try"
SHARD = (
    "split weights, gradients and the optimizer's moments over the processes, for a model that does not fit into one "
    "(FSDP2); to be said again with --resume"
)
COMPILE = (
    "train with compiled layers (torch.compile): the same losses, after a minute or more of compiling; needs a C++ "
    "compiler; docs/performance.md says where it pays"
)


class TrainingSettings(StepSettings):
    """training"""

    train_rows: int | None = flag(None, TRAIN_ROWS, "[1, inf)")
    batch_size: int = flag(
        8,
        "rows a step of every process; two with 4 take the steps of one with 8",
        "[1, inf)",
        free_on_resume=True,
        elsewhere="bs per_device_train_batch_size train_batch_size",
    )
    epochs: int = flag(
        10, "passes over the training data", "[1, inf)", free_on_resume=True, elsewhere="num_train_epochs num_epochs"
    )
    patience: int = flag(
        0,
        "stop after so many epochs without a better score; 0: never",
        "[0, inf)",
        free_on_resume=True,
        idle_from="epochs",
    )
    shard: bool = flag(False, SHARD, from_flags="always")
    compile: bool = flag(False, COMPILE)

    def together(self, processes):
        """What a step is of all processes together, {what: value}: a run that goes on must find it again."""
        return {ROWS: self.batch_size * processes}


class InferenceSettings(Settings, free_on_resume=True, from_flags="when predicting"):
    """prediction"""

    eval_batch_size: int = flag(32, "rows a batch when no gradient is needed", "[1, inf)")
    merge: bool = flag(
        False,
        "fold the tuning method into the weights before predicting: the same up to rounding, no extra cost; adapters, "
        "prompts, prefixes and LLaMA-Adapter cannot be",
    )


class RunSettings(Settings, from_flags="always"):
    """run folder"""

    run_dir: str | None = flag(
        None, "folder of this run; by default a new one under runs/", training_only=True, elsewhere="output_dir out_dir"
    )
    resume: bool = flag(
        False,
        "go on with the run in --run_dir (or the newest one) where it was stopped",
        elsewhere="continue resume_from_checkpoint",
    )
    checkpoint: str | None = flag(None, "do not train: load this run's weights and predict")
    log_with: str = flag(
        "none",
        "show the metrics in one of these as well; it must be installed",
        ("none", "tensorboard", "wandb", "trackio"),
        training_only=True,
    )

    def relate(self):
        check(not (self.resume and self.checkpoint), "--resume trains on, --checkpoint only predicts: give one of them")


# --- tuning methods ---------------------------------------------------------------------------------------------------

CLAIMS = {  # what only one of the chosen methods can have, and why
    "linears": "each replaces the linears of a layer",
    "attention": "both change what a layer attends to, and there is one place for that",
    "first positions": "each claims the first positions of the text",
    "base weights": "what is stored in 4 bits cannot be trained",
}
TUNING_METHODS = {  # name: (one line for --help, what it claims); tuning/register.py says what each does
    "lora": ("low-rank updates of the linears", "linears"),
    "qlora": ("LoRA over linears frozen in 4 bits", "linears", "base weights"),
    "adalora": ("low-rank updates whose ranks move to where they matter", "linears"),
    "ia3": ("a learned factor for each key, value and hidden feature", "linears"),
    "adapter": ("small bottlenecks after the sublayers",),
    "prompt": ("learned word vectors before the text", "first positions"),
    "ptuning": ("the same, written by a small network", "first positions"),
    "prefix": ("learned keys and values in every layer", "first positions", "attention"),
    "llama_adapter": ("learned prompts in the top layers, behind gates that start at zero", "attention"),
    "bitfit": ("the biases only",),
    "top_layers": ("the last layers only", "base weights"),
}


class TuningSettings(Settings):
    """tuning: what is trained; without any of these, all of GPT-2"""

    tuning: tuple = flag(
        (),
        "tuning method, or several that combine: " + "; ".join(f"{k}: {v[0]}" for k, v in TUNING_METHODS.items()),
        TUNING_METHODS,
        nothing="no tuning method",
    )
    lora: bool = flag(False, "short for --tuning lora", shorthand_of=("tuning", "lora"))
    adapter: bool = flag(False, "short for --tuning adapter", shorthand_of=("tuning", "adapter"))

    def relate(self):
        for claim, reason in CLAIMS.items():
            both = [name for name in self.methods if claim in TUNING_METHODS[name][1:]]
            check(len(both) < 2, f"--tuning {' '.join(both)}: they do not combine, {reason}; choose one")

    @property
    def methods(self):
        """The chosen methods' names, each once, as they were given."""
        return self.expanded("tuning")


class LoRASettings(Settings, requires=("tuning", "lora", "qlora")):
    """LoRA: low-rank updates of the linears (Hu et al. 2021); QLoRA: over a 4-bit base (Dettmers et al. 2023)"""

    lora_rank: int = flag(4, "r, the rank of the update", "[1, inf)", elsewhere="lora_r rank r")
    lora_alpha: float = flag(16.0, "the update is scaled by alpha / r", "(0, inf)", elsewhere="alpha")
    lora_dropout: float = flag(0.05, "dropout on the input of the LoRA branch only", "[0, 1)")
    lora_targets: str = flag(
        "query,value,interm_dense", f"comma-separated linears, out of {', '.join(LINEAR_NAMES)}", names=LINEARS
    )
    lora_rank_stabilized: bool = flag(False, "scale by alpha / sqrt(r) (Kalajdzievski 2023)")
    lora_bias: str = flag(
        "none", "biases to train as well: those of the adapted linears, or all of GPT-2's", ("none", "lora_only", "all")
    )

    @property
    def targets(self):
        """The targets as a list, without repetitions."""
        return split_names(self.lora_targets)

    @property
    def scaling(self):
        return self.lora_alpha / (self.lora_rank**0.5 if self.lora_rank_stabilized else self.lora_rank)


class AdaLoRASettings(Settings, requires=("tuning", "adalora")):
    """AdaLoRA: a budget of ranks, spent where it matters (Zhang et al. 2023)"""

    adalora_start_rank: int = flag(12, "rank of every update at the start")
    adalora_rank: int = flag(8, "mean rank of the updates at the end")
    adalora_alpha: float = flag(32.0, "the update is scaled by alpha / start rank", "(0, inf)")
    adalora_dropout: float = flag(0.05, "dropout on the input of the update only", "[0, 1)")
    adalora_targets: str = flag(",".join(LINEAR_NAMES), "comma-separated linears to adapt", names=LINEARS)
    adalora_warmup: float = flag(0.1, "share of the steps before ranks are taken away")
    adalora_final: float = flag(0.3, "share of the steps at the end with the ranks as they are")
    adalora_interval: int = flag(10, "steps between two allocations", "[1, inf)")
    adalora_penalty: float = flag(0.5, "weight of the orthogonality penalty", "[0, inf)")

    def relate(self):
        check(
            1 <= self.adalora_rank <= self.adalora_start_rank,
            f"--adalora_rank must be between 1 and --adalora_start_rank, got {self.adalora_rank} "
            f"and {self.adalora_start_rank}",
        )
        check(
            min(self.adalora_warmup, self.adalora_final) >= 0 and self.adalora_warmup + self.adalora_final < 1,
            "--adalora_warmup and --adalora_final are shares of the steps: together less than 1",
        )

    @property
    def targets(self):
        return split_names(self.adalora_targets)


class IA3Settings(Settings, requires=("tuning", "ia3")):
    """(IA)^3: learned factors (Liu et al. 2022)"""

    ia3_targets: str = flag(
        "key,value,out_dense", "comma-separated linears; out_dense's input is scaled, the others' output", names=LINEARS
    )

    @property
    def targets(self):
        return split_names(self.ia3_targets)


class AdapterSettings(Settings, requires=("tuning", "adapter")):
    """adapters: small bottlenecks after the sublayers (Houlsby et al. 2019, Pfeiffer et al. 2021)"""

    adapter_size: int = flag(64, "m, the width of the bottleneck", "[1, inf)")
    adapter_placement: str = flag(
        "houlsby", "after attention and feed-forward (houlsby), or after the latter (pfeiffer)", ("houlsby", "pfeiffer")
    )


class PromptSettings(Settings, requires=("tuning", "prompt")):
    """prompt tuning (Lester et al. 2021)"""

    prompt_length: int = flag(20, "P, the number of virtual tokens", "[1, inf)")


class PTuningSettings(Settings, requires=("tuning", "ptuning")):
    """P-tuning (Liu et al. 2021)"""

    ptuning_length: int = flag(20, "P, the number of virtual tokens", "[1, inf)")
    ptuning_encoder: str = flag("mlp", "the network that writes them", ("mlp", "lstm"))
    ptuning_hidden: int = flag(128, "h, its width", "[1, inf)")


class PrefixSettings(Settings, requires=("tuning", "prefix")):
    """prefix tuning (Li & Liang 2021)"""

    prefix_length: int = flag(20, "P, learned positions in every layer", "[1, inf)")
    prefix_hidden: int = flag(0, "width of the MLP that writes them while training; 0: none", "[0, inf)", zero="no MLP")


class LlamaAdapterSettings(Settings, requires=("tuning", "llama_adapter")):
    """LLaMA-Adapter (Zhang et al. 2023)"""

    llama_length: int = flag(10, "P, prompt vectors a layer", "[1, inf)")
    llama_layers: int = flag(0, "top layers that get them; 0: all but the first", "[0, inf)", zero="all but the first")
    llama_gate: str = flag("scalar", "one gate a layer, or one a head", ("scalar", "head"))


class TopLayersSettings(Settings, requires=("tuning", "top_layers")):
    """top layers only"""

    top_layers_count: int = flag(2, "how many of the last layers are trained", "[1, inf)")


class TaskSettings(Script):
    """What the tasks have in common."""

    frozen = False  # whether GPT-2 stays as it is, and only what stands on it is trained

    model: ModelSettings = group(ModelSettings)
    tuning: TuningSettings = group(TuningSettings)
    lora: LoRASettings = group(LoRASettings)
    adalora: AdaLoRASettings = group(AdaLoRASettings)
    ia3: IA3Settings = group(IA3Settings)
    adapter: AdapterSettings = group(AdapterSettings)
    prompt: PromptSettings = group(PromptSettings)
    ptuning: PTuningSettings = group(PTuningSettings)
    prefix: PrefixSettings = group(PrefixSettings)
    llama_adapter: LlamaAdapterSettings = group(LlamaAdapterSettings)
    top_layers: TopLayersSettings = group(TopLayersSettings)
    training: TrainingSettings = group(TrainingSettings)
    inference: InferenceSettings = group(InferenceSettings)
    run: RunSettings = group(RunSettings)


# --- sonnet_generation.py ---------------------------------------------------------------------------------------------

SAMPLED = ("sample", "mbr", "template")  # the ways of decoding that draw tokens
DRAWING, BEAM, TEMPLATE = ("decode", *SAMPLED), ("decode", "beam"), ("decode", "template")  # what flags require
NOTHING_DRAWN = {"decode": ("sample",), "temperature": (0,)}  # (templates are drawn all the same)
TAG_SETS = ("penn", "universal", "content", "word")  # of the templates, ever coarser


class SonnetData(Settings, from_flags="when predicting"):
    """data"""

    sonnet_path: str = flag(
        "data/sonnets.txt",
        "training sonnets: the course's layout, or a .csv or .tsv with a column of them",
        free_on_resume=True,
        reads=True,
    )
    held_out_sonnet_path: str = flag(
        "data/sonnets_held_out.txt", "prompts: sonnets of three lines to be completed", free_on_resume=True, reads=True
    )
    sonnet_out: str = flag("predictions/generated_sonnets.txt", "where the completed sonnets go", free_on_resume=True)
    gold_sonnet_path: str = flag(
        "data/TRUE_sonnets_held_out_dev.txt",
        "whole dev sonnets: their loss picks the best epoch, their first three lines are completed and scored; "
        "where this file is missing, a tenth of the training sonnets is kept aside for it",
        free_on_resume=True,
        reads=True,
    )
    sonnet_dev_out: str = flag(
        "predictions/generated_sonnets_dev.txt", "where completed dev sonnets go", free_on_resume=True
    )
    score_seeds: int = flag(
        3,
        "seeds to complete the dev sonnets with: chrF as mean and deviation",
        "[1, inf)",
        free_on_resume=True,
        requires=DRAWING,
    )

    def relate(self):
        check_outputs(self, ("sonnet_out", "sonnet_dev_out"))


class DecodingSettings(Settings, free_on_resume=True, from_flags="when predicting"):
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
        1.2,
        "below 1 safer, above 1 bolder, 0 means greedy, whatever else shapes the draws",
        "[0, inf)",
        zero="greedy",
        requires=DRAWING,
    )
    top_p: float = flag(
        0.9,
        "nucleus: sample from the smallest set of tokens with this probability mass",
        "(0, 1]",
        requires=DRAWING,
    )
    top_k: int = flag(
        0,
        "sample from the k most probable tokens only; 0 means all",
        "[0, inf)",
        zero="all tokens",
        requires=DRAWING,
    )
    min_p: float = flag(
        0.0,
        "strike tokens less probable than this share of the most probable one",
        "[0, 1]",
        requires=DRAWING,
    )
    repetition_penalty: float = flag(
        1.0, "tokens that have occurred become less probable by this factor in the logits; 1: off", "(0, inf)"
    )
    no_repeat_ngram: int = flag(0, "never write so many tokens in a row twice; 0 allows all", "[0, inf)", zero="off")
    int8: bool = flag(
        False,
        "write with weights rounded to 8 bits, on the CPU: faster, other texts; what it does to the dev loss is said",
    )
    max_new_tokens: int = flag(256, "give up on line 14 after this many new tokens", "[1, inf)", elsewhere="max_length")
    num_samples: int | None = flag(
        None,
        "samples a prompt, of which one is kept: the one with the highest mean log-probability or, with --decode mbr, "
        "the highest mean chrF against the others (default: 1; with mbr 8)",
        "[1, inf)",
        requires=DRAWING,
        idle_with=NOTHING_DRAWN,
    )
    beams: int = flag(4, "beams a prompt", "[1, inf)", requires=BEAM)
    length_penalty: float = flag(
        1.0, "a log-probability is divided by the length to this power: larger, longer", "(-inf, inf)", requires=BEAM
    )
    early_stopping: str = flag(
        "false",
        "end a search when as many texts as beams are finished (true), when none of this length can become better "
        "(false), or when none of any length can (never)",
        ("false", "true", "never"),
        requires=BEAM,
    )
    templates: str | None = flag(
        None,
        "file of templates; by default the training sonnets' (kept as templates.txt in the run)",
        requires=TEMPLATE,
        instead_of="template_tags",
        reads=True,
    )
    template_tags: str = flag(
        "penn", "tags: Penn's, the universal 12, content and function words, any word", TAG_SETS, requires=TEMPLATE
    )

    def relate(self):
        check(
            self.decode != "mbr" or self.temperature > 0,
            "--decode mbr compares samples, and --temperature 0 draws none: give one above 0",
        )
        check(
            self.decode != "mbr" or self.samples >= 3,
            f"--num_samples must be at least 3 with --decode mbr, which compares them, got {self.samples}",
        )

    @property
    def draws(self):
        """Whether tokens or templates are drawn, so that another seed is another text."""
        return self.decode in SAMPLED and (self.temperature > 0 or self.decode == "template")

    @property
    def samples(self):
        """How many samples a prompt gets. A --num_samples saved with a run counts only where tokens are drawn."""
        if not self.draws:
            return 1
        return (8 if self.decode == "mbr" else 1) if self.num_samples is None else self.num_samples


class SonnetSettings(TaskSettings):
    """Fine-tune GPT-2 on sonnets, complete the held-out ones from their first three lines, score them with chrF."""

    data: SonnetData = group(SonnetData)
    decoding: DecodingSettings = group(DecodingSettings)


# --- paraphrase_detection.py ------------------------------------------------------------------------------------------


class ParaphraseData(Settings, from_flags="when predicting"):
    """data"""

    para_train: str = flag("data/quora-train.csv", "training pairs", free_on_resume=True, reads=True)
    para_dev: str = flag(
        "data/quora-dev.csv", "dev pairs: their accuracy picks the best epoch", free_on_resume=True, reads=True
    )
    para_test: str = flag("data/quora-test-student.csv", "test pairs, without labels", free_on_resume=True, reads=True)
    swap_questions: bool = flag(
        False, "train on every pair in both orders: twice the rows, the question is the same", training_only=True
    )
    para_dev_out: str = flag("predictions/para-dev-output.csv", "where the dev predictions go", free_on_resume=True)
    para_test_out: str = flag("predictions/para-test-output.csv", "where the test predictions go", free_on_resume=True)

    def relate(self):
        check_outputs(self, ("para_dev_out", "para_test_out"))


EDA, BACK_TRANSLATION = (("augment", name) for name in ("eda", "back_translation"))
EDA_OPERATIONS = ("synonyms", "insertion", "swap", "deletion")


class AugmentationSettings(Settings, training_only=True):
    """augmentation: more training pairs, made from those there are (never from dev or test)"""

    augment: tuple = flag(
        (),
        "eda: a few words of every question replaced, inserted, swapped or left out (Wei & Zou 2019); "
        "back_translation: every question translated and translated back (Sennrich et al. 2016)",
        ("eda", "back_translation"),
    )
    augment_count: int | None = flag(
        None,
        "change so many of the training pairs, drawn at random; by default all of them",
        "[1, inf)",
        requires=("augment", "eda", "back_translation"),
    )
    eda_operations: tuple = flag(
        EDA_OPERATIONS, "what may happen to a question; one of these is drawn for each", EDA_OPERATIONS, requires=EDA
    )
    eda_alpha: float = flag(0.1, "share of a question's words that changes", "(0, 1]", requires=EDA)
    eda_copies: int = flag(1, "changed copies of every pair", "[1, inf)", requires=EDA)
    wordnet: str | None = flag(
        None,
        "folder of WordNet's files; by default where nltk or Debian's wordnet-base keep them",
        requires=("eda_operations", "synonyms", "insertion"),
        reads=True,
    )
    bt_forward: str = flag(
        "Helsinki-NLP/opus-mt-en-fr",
        "Marian model out of English: a name on the hub, or a folder",
        requires=BACK_TRANSLATION,
    )
    bt_backward: str = flag("Helsinki-NLP/opus-mt-fr-en", "Marian model back into English", requires=BACK_TRANSLATION)
    bt_beams: int = flag(
        4, "beams of both translations; 1 is several times faster", "[1, inf)", requires=BACK_TRANSLATION
    )
    bt_batch_size: int = flag(32, "questions translated at a time", "[1, inf)", requires=BACK_TRANSLATION)
    bt_cache: str = flag(
        "runs/back_translations.sqlite",
        "file that keeps all translations, for the next run and after a stop",
        requires=BACK_TRANSLATION,
    )

    def relate(self):
        self.augment = tuple(dict.fromkeys(self.augment))
        self.eda_operations = tuple(name for name in EDA_OPERATIONS if name in self.eda_operations)
        check(self.eda_operations, f"--eda_operations is empty; choose from {', '.join(EDA_OPERATIONS)}")


class HeadSettings(Settings):
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
        "[0, inf)",
        zero="off",
    )


PENALTIES = ("parameters", "attention", "embeddings")
POOLINGS = ("last", "mean", "max", "attention", "generalized")
POOLINGS_HELP = "last token; mean or max over time; attention (Linear, tanh, softmax); generalized (Chen et al. 2018)"


class PoolingSettings(Settings, requires=("pooling", "generalized")):
    """pooling: how the hidden states of a text become one vector"""

    pooling: str = flag("last", POOLINGS_HELP, POOLINGS, requires=None)
    pooling_heads: int = flag(1, "heads of generalized pooling, concatenated", "[1, inf)")
    pooling_hidden: int = flag(128, "width of its W1", "[1, inf)")
    pooling_penalty: str = flag(
        "none",
        "what keeps the heads apart: their W1, their attention or their vectors",
        ("none", *PENALTIES),
    )
    pooling_penalty_weight: float = flag(0.01, "mu of the penalty", requires=("pooling_penalty", *PENALTIES))
    pooling_penalty_margin: float = flag(1.0, "lambda of the penalty", requires=("pooling_penalty", *PENALTIES))

    def relate(self):
        check(
            self.pooling_penalty == "none" or self.pooling_heads > 1,
            f"--pooling_penalty {self.pooling_penalty} compares heads: give --pooling_heads 2 or more",
        )


class PairPoolingSettings(PoolingSettings):
    """pooling: how the hidden states of a text become one vector"""

    pooling: str = flag(
        "last",
        f"{POOLINGS_HELP}; aligned: the last token and a comparison of the questions word by word (Parikh et al. 2016)",
        (*POOLINGS, "aligned"),
        requires=None,
    )
    pooling_hidden: int = flag(
        128, "width of its W1, or of the comparison", "[1, inf)", requires=("pooling", "generalized", "aligned")
    )


class ParaphraseSettings(TaskSettings):
    """Fine-tune GPT-2 to tell whether two questions ask the same, and write yes (8505) or no (3919) for every pair."""

    data: ParaphraseData = group(ParaphraseData)
    augmentation: AugmentationSettings = group(AugmentationSettings)
    head: HeadSettings = group(HeadSettings)
    pooling: PairPoolingSettings = group(PairPoolingSettings)

    def relate(self):
        check(
            self.head.head == "linear" or self.pooling.pooling_heads == 1,
            "--head cloze reads one vector of the model's width: use --pooling_heads 1, or --head linear",
        )


# --- classifier.py ----------------------------------------------------------------------------------------------------


class SentimentData(Settings, from_flags="when predicting"):
    """data: SST (five classes), then CFIMDB (two classes)"""

    only: str | None = flag(
        None,
        "only this one of the two; by default both (the other's files are not read)",
        CLASSES,
        free_on_resume=True,
        from_flags=None,
    )
    sst_train: str = flag("data/ids-sst-train.csv", "training sentences", free_on_resume=True, reads=True)
    sst_dev: str = flag(
        "data/ids-sst-dev.csv", "dev sentences: their accuracy picks the best epoch", free_on_resume=True, reads=True
    )
    sst_test: str = flag(
        "data/ids-sst-test-student.csv", "test sentences, without labels", free_on_resume=True, reads=True
    )
    cfimdb_train: str = flag("data/ids-cfimdb-train.csv", "training reviews", free_on_resume=True, reads=True)
    cfimdb_dev: str = flag("data/ids-cfimdb-dev.csv", "dev reviews", free_on_resume=True, reads=True)
    cfimdb_test: str = flag(
        "data/ids-cfimdb-test-student.csv", "test reviews, without labels", free_on_resume=True, reads=True
    )
    predictions: str = flag(
        "predictions",
        "folder of the hand-in files, which are called {last-linear-layer|full-model}-{sst|cfimdb}-{dev|test}-out.csv",
        free_on_resume=True,
    )

    @property
    def names(self):
        """The data sets, one after the other."""
        return [self.only] if self.only else list(CLASSES)


class SentimentTuning(TuningSettings):
    """tuning: what of GPT-2 is trained; without any of these, what --fine-tune-mode says"""


class SentimentTraining(TrainingSettings):
    """training"""

    lr: float | None = flag(
        None,
        "peak learning rate; by default 1e-3 for the last linear layer alone, else the method's own (full 1e-5, LoRA "
        "2e-4)",
        "(0, inf)",
        free_on_resume="after divergence",
        elsewhere="learning_rate",
    )


class SentimentHeadSettings(Settings):
    """classifier"""

    fine_tune_mode: str | None = flag(
        None,
        "last-linear-layer: GPT-2 stays frozen, only the linear layer on top (and the pooling, where it has "
        "parameters) is trained; full-model: GPT-2, too. By default last-linear-layer or, with a tuning method such as "
        "--lora, which changes GPT-2 and is refused beside last-linear-layer, full-model",
        ("last-linear-layer", "full-model"),
        also="fine-tune-mode",
    )
    hidden_dropout_prob: float = flag(0.3, "dropout of a review's vector, before the linear layer", "[0, 1)")


class ClassifierSettings(TaskSettings):
    """Classify the sentiment of movie reviews, SST into five classes, then CFIMDB into two; write the hand-in files."""

    data: SentimentData = group(SentimentData)
    tuning: SentimentTuning = group(SentimentTuning)
    training: SentimentTraining = group(SentimentTraining)
    head: SentimentHeadSettings = group(SentimentHeadSettings)
    pooling: PoolingSettings = group(PoolingSettings)

    def relate(self):
        methods = " ".join(self.tuning.methods)
        if self.head.fine_tune_mode is None:
            self.head.fine_tune_mode = "full-model" if methods else "last-linear-layer"
        check(
            not (methods and self.frozen),
            f"--fine-tune-mode last-linear-layer leaves GPT-2 as it is, --tuning {methods} changes it: leave one out",
        )
        check(
            not (self.frozen and self.model.dropout is not None),
            "--dropout has no effect where GPT-2 is frozen: give --fine-tune-mode full-model, or leave the flag out",
        )

    @property
    def frozen(self):
        return self.head.fine_tune_mode == "last-linear-layer"

    def output(self, name, split):
        """The path of a hand-in file. name: of the data set; split: dev or test."""
        return f"{self.data.predictions}/{self.head.fine_tune_mode}-{name}-{split}-out.csv"


# --- pretrain.py ------------------------------------------------------------------------------------------------------


class CorpusData(Settings, from_flags="when predicting"):
    """data"""

    corpus: str = flag(
        "corpus", "folder of UTF-8 .txt files (subfolders included); each file is one document", reads=True
    )
    held_out: str = flag(
        "",
        "comma-separated files of that folder to measure on, kept out of training; "
        "by default about a hundredth of the text: the ends of long files, or whole short ones",
    )
    pairs: str | None = flag(
        None,
        "question pairs in the course's format, to be learned with the text, each in the prompt of "
        "paraphrase_detection.py with its answer",
        reads=True,
    )
    out: str | None = flag(
        None,
        "where the finished model goes, in Hugging Face layout; by default model/ in the run folder",
        free_on_resume=True,
    )
    save_dtype: str = flag(
        "float32",
        "number format of the saved weights; half takes half the space",
        ("float32", "float16"),
        free_on_resume=True,
    )

    @property
    def held_out_names(self):
        return split_names(self.held_out)


class ShapeSettings(Settings):
    """model: by default one of 5.5 million parameters, for an hour or two on a CPU"""

    vocab_size: int = flag(
        8960,
        'tokens of the byte-level BPE; "yes" has the id 8505, and one more must follow',
        f"[{ANSWERS['yes'] + 2}, inf)",
        why=f'so that "yes" can have id {ANSWERS["yes"]} as in GPT-2 and {END_OF_TEXT} come last',
    )
    context: int = flag(256, "tokens the model sees at once (GPT-2: 1024)", "[2, inf)")
    layers: int = flag(4, "number of layers (GPT-2: 12)", "[1, inf)")
    hidden_size: int = flag(256, "width (GPT-2: 768)", "[1, inf)")
    heads: int = flag(4, "attention heads (GPT-2: 12)", "[1, inf)")
    dropout: float = flag(
        0.0, "dropout while pre-training; the saved model says 0.1, as GPT-2, for its fine-tuning", "[0, 1)"
    )

    def relate(self):
        check(
            self.hidden_size % self.heads == 0,
            f"--hidden_size {self.hidden_size} is no multiple of --heads {self.heads}: choose one",
        )


def _check_stretches(settings):
    check(
        settings.steps % settings.eval_every == 0,
        f"--steps {settings.steps} is no multiple of --eval_every {settings.eval_every}: choose one",
    )


def _stretches(settings):
    """For the training loop an epoch is the stretch between two measurements."""
    return settings.steps // settings.eval_every


class PretrainingSettings(StepSettings):
    """training"""

    steps: int = flag(6000, "optimizer steps in all", "[1, inf)")
    eval_every: int = flag(250, "steps between two measurements on held-out text", "[1, inf)")
    batch_size: int = flag(
        8,
        "rows of --context tokens a step of every process; two with 4 take the steps of one with 8",
        "[1, inf)",
        free_on_resume=True,
    )
    lr: float = flag(
        1.5e-3,
        "peak; smaller for larger models (GPT-2 small: 6e-4)",
        "(0, inf)",
        free_on_resume="after divergence",
        elsewhere="learning_rate",
    )
    weight_decay: float = flag(0.1, "decoupled weight decay, never on biases and LayerNorm", "[0, inf)")
    schedule: str = flag("cosine", "learning rate after the warm-up", SCHEDULES)
    beta2: float = flag(0.99, "AdamW's decay rate of the squared gradients; smaller forgets sooner", "[0, 1)")
    guidance: float = flag(
        0.0,
        "weight of a loss that teaches four heads of the first two layers to look words up in the text before "
        "(Deshpande & Narasimhan 2020): what a small model does not learn by itself; 1 is a good one",
        "[0, inf)",
    )
    answer_weight: float = flag(1.0, "weight of the answers of --pairs, against 1 of any other token", "[0, inf)")
    shard: bool = flag(False, SHARD, from_flags="always")
    compile: bool = flag(False, COMPILE)

    def relate(self):
        _check_stretches(self)
        check(
            not (self.guidance and (self.compile or self.shard)),
            "--guidance does not work with --compile or --shard: leave one out",
        )

    def together(self, processes):
        """As in TrainingSettings."""
        return {ROWS: self.batch_size * processes}

    epochs, patience = property(_stretches), 0  # no fields: all steps are always taken


class PretrainSettings(Script):
    """Pre-train a GPT-2 of any size from scratch on a folder of text files; save it in Hugging Face layout."""

    data: CorpusData = group(CorpusData)
    shape: ShapeSettings = group(ShapeSettings)
    training: PretrainingSettings = group(PretrainingSettings)
    run: RunSettings = group(RunSettings)

    def relate(self):
        check(
            not self.training.guidance or min(self.shape.layers, self.shape.heads) > 1,
            "--guidance teaches two heads in each of two layers: give --layers and --heads of 2 or more",
        )
        check(
            self.training.answer_weight == 1 or self.data.pairs,
            "--answer_weight has no effect without --pairs: give both, or leave it out",
        )


# --- translation.py ---------------------------------------------------------------------------------------------------


class TranslationData(Settings):
    """data: a tab-separated file (sentence, translation), or two files as SOURCE,TARGET; .gz is read, too"""

    train_pairs: str = flag("data/sample/translation-train.tsv", "pairs to train on", free_on_resume=True, reads=True)
    dev_pairs: str = flag(
        "data/sample/translation-dev.tsv", "pairs whose loss is measured", free_on_resume=True, reads=True
    )
    test_pairs: str = flag(
        "data/sample/translation-test.tsv",
        "pairs to translate and to score or, a sentence a line, only to translate",
        free_on_resume=True,
        reads=True,
    )
    translation_out: str = flag(
        "predictions/translation-test.txt",
        "where the translations go",
        free_on_resume=True,
        from_flags="when predicting",
    )

    def relate(self):
        check_outputs(self, ("translation_out",))


class PairTextSettings(Settings):
    """text"""

    vocab_size: int = flag(1000, "tokens of the byte-level BPE that both languages share", "[257, inf)")
    lowercase: bool = flag(False, "lower-case both languages, as some published scores do")
    max_length: int = flag(256, "tokens of a sentence; training leaves longer pairs out", "[1, inf)")


class TransformerShape(Settings):
    """model"""

    model: str = flag(
        "base",
        "base: decoder layers attend to the last encoder layer (Vaswani et al. 2017); parallel: decoder layer i to "
        "encoder layer i",
        ("base", "parallel"),
    )
    layer_teacher_forcing: float = flag(
        0.0,
        "while training, the share of sentences for which a decoder layer gets the target's embedding in place of the "
        "layer below",
        "[0, 1]",
        zero="off",
        training_only=True,
        idle_with={"layers": (1,)},
    )
    layers: int = flag(2, "layers of the encoder, and of the decoder", "[1, inf)")
    hidden_size: int = flag(96, "width", "[2, inf)")
    heads: int = flag(4, "attention heads", "[1, inf)")
    ffn_size: int = flag(256, "width of the feed-forward sublayers", "[1, inf)")
    tied_embeddings: str = flag(
        "all",
        "all: source, target and output share one matrix; target: target and output do; none",
        ("all", "target", "none"),
    )
    dropout: float = flag(0.1, "dropout of embeddings and sublayers", "[0, 1)")
    attention_dropout: float = flag(0.0, "dropout of the attention's weights", "[0, 1)")

    def relate(self):
        check(
            self.hidden_size % (2 * self.heads) == 0,
            f"--hidden_size {self.hidden_size} is no multiple of twice --heads {self.heads}: choose one",
        )


class TranslationTraining(StepSettings):
    """training"""

    train_rows: int | None = flag(None, TRAIN_ROWS, "[1, inf)")
    steps: int = flag(1000, "optimizer steps in all", "[1, inf)")
    eval_every: int = flag(100, "steps between two measurements on the dev pairs", "[1, inf)")
    batch_tokens: int = flag(
        1024,
        "tokens of a batch: rows times the longest sentence, on the longer side; a step of N processes is that of one "
        "with N times the --gradient_accumulation",
        "[1, inf)",
    )
    label_smoothing: float = flag(0.1, "share of the target that goes to all tokens alike", "[0, 1)")
    average: int = flag(
        3, "translate with the mean weights of the last so many measurements; 1: with those of the best one", "[1, inf)"
    )
    lr: float = flag(4e-3, "peak", "(0, inf)", free_on_resume="after divergence", elsewhere="learning_rate")
    schedule: str = flag("inverse_sqrt", "learning rate after the warm-up", SCHEDULES)
    warmup_ratio: float = flag(0.15, "share of all steps over which the learning rate rises from 0", "[0, 1]")
    max_grad_norm: float = flag(0.0, "clip the gradient to this norm; 0 switches clipping off", "[0, inf)")
    beta2: float = flag(0.98, "AdamW's decay rate of the squared gradients; smaller forgets sooner", "[0, 1)")
    gradient_accumulation: int = flag(
        1, "batches whose gradients are added up before each step", "[1, inf)", free_on_resume=True
    )

    def relate(self):
        _check_stretches(self)

    def together(self, processes):
        """As in TrainingSettings."""
        return {"batches a step (--gradient_accumulation times processes)": self.gradient_accumulation * processes}

    epochs, patience = property(_stretches), 0


class TranslationDecoding(Settings, free_on_resume=True, from_flags="when predicting"):
    """decoding"""

    decode: str = flag(
        "beam", "beam: search for the most probable text; greedy: the most probable token", ("beam", "greedy")
    )
    beams: int = flag(5, "beams a sentence", "[1, inf)", requires=BEAM)
    length_penalty: float = flag(
        1.0, "a log-probability is divided by the length to this power: larger, longer", "(-inf, inf)", requires=BEAM
    )
    eval_batch_size: int = flag(320, "rows (sentences times beams) a batch", "[1, inf)")
    bleu_tokenize: str = flag("13a", "sacrebleu's tokenisation for BLEU", ("13a", "intl", "char", "zh", "none"))

    @property
    def decoding(self):
        """The DecodingSettings of the decoders."""
        if self.decode == "greedy":
            return DecodingSettings(decode="greedy", temperature=0.0)
        return DecodingSettings(decode="beam", beams=self.beams, length_penalty=self.length_penalty)


class TranslationSettings(Script):
    """Train a Transformer on pairs of sentences from nothing, translate, and score with BLEU. Without any flag: English
    to Korean, on the small sample that comes with the project."""

    data: TranslationData = group(TranslationData)
    text: PairTextSettings = group(PairTextSettings)
    shape: TransformerShape = group(TransformerShape)
    training: TranslationTraining = group(TranslationTraining)
    decoding: TranslationDecoding = group(TranslationDecoding)
    run: RunSettings = group(RunSettings)
