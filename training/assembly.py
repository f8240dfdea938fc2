"""From a script's settings to what it works with: the run, the device, and GPT-2 with its tuning methods.

The order matters: weights, then methods, then freezing (and, for bf16, one cast of what is frozen). The optimizer comes
after all of it.
"""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from cli.script import say
from config import DROPOUTS, MODEL_SIZES
from datasets import LengthGroupedBatches, load_tokenizer
from errors import UserError, check
from files import where_it_may_be
from formats.hub import find_model
from models.gpt2 import GPT2Model
from modules.packed import pack
from training.compiling import check_compiler
from training.figures import record_of, table_of
from training.fp16 import HalfAccelerator
from training.inputs import fingerprint
from training.loop import TrainingLoop, total_steps
from training.processes import check_same_everywhere, in_first_process
from training.randomness import seed_everything
from training.runs import Run, open_run
from training.trackers import Tracker, check_tracker
from tuning.attach import attach, cast_for_prediction, cast_frozen, check_mergeable, freeze, merge
from tuning.register import METHODS, chosen_methods, default_learning_rate

OLDEST_TORCH = (2, 8)
# What accelerate would take from the environment over a run's own settings.
FOREIGN_SETTINGS = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_MIXED_PRECISION"}
FOREIGN_SETTINGS |= {"ACCELERATE_USE_FSDP"}
PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}  # what accelerate calls them: what --precision does
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
BF16_FEATURES = {"avx512_bf16", "amx_bf16"}


@dataclass
class Session:
    """What a script's flags ask for: the run, its settings with all made definite, and accelerate's Accelerator.

    task: the script's name. In every process the same.
    """

    task: str
    run: Run
    settings: object
    accelerator: Accelerator

    def of_part(self, part, given):
        """The Session of another part of the script: a run beside this one's, on the same device. Raises UserError.

        given: the flags that were typed, as for `open_session`.
        """
        settings = copy.deepcopy(self.settings)
        if settings.run.resume:
            settings.run.run_dir = str(self.run.home)  # not what is newest now
        run, settings = open_run(self.task, self.run.home.name, settings, given, part)
        options, ours = settings.training, self.settings.training
        check(
            options.precision == ours.precision,
            f"{run.folder} was trained in {options.precision}, {self.run.folder} in {ours.precision}: resume each by "
            "itself with --only",
        )
        run, settings = in_first_process(lambda: (run, settings))
        return Session(self.task, run, settings, self.accelerator)

    def batches(self, dataset):
        """This process's share of the shuffled training batches."""
        options, accelerator = self.settings.training, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        return LengthGroupedBatches(dataset, options.batch_size, True, options.seed, rank, world)

    def begin(self, base, inputs=None, batches=None):
        """`Run.begin` in the first process; all know what came of it.

        base: the base model's fingerprint. inputs, batches: what a run that goes on must find again, unless it only
        predicts. Raises UserError.
        """
        run, inputs = self.run, inputs or {}
        check_same_everywhere({"base model": base} | _contents(inputs))
        inputs = self.settings.training.together(self.accelerator.num_processes) | inputs
        steps = 0 if batches is None else total_steps(batches, self.settings.training)

        def begin():
            run.begin(self.task, self.settings, base, inputs, steps)
            if self.settings.run.log_with != "none" and not run.predicting:
                with run.given_up_on_errors():
                    run.trackers.append(Tracker(self.settings.run.log_with, run, self.settings))
            return run.folder, run.total_steps

        run.folder, run.total_steps = in_first_process(begin)

    def loop(self, model, after_step=None):
        """The TrainingLoop of a run that has begun."""
        return TrainingLoop(model, self.settings.training, self.run, self.accelerator, after_step)


def check_shard(settings, accelerator):
    """Raise UserError where --shard would do nothing, or cannot be done."""
    several = accelerator.num_processes > 1
    check(several, "--shard has no effect in one process: start several (torchrun), or leave it out")
    check(accelerator.device.type != "mps", "--shard needs CUDA or the CPU: leave --use_gpu out")
    frozen = getattr(settings, "frozen", False)
    check(not frozen, "--shard: a frozen GPT-2 is read once, and not trained: leave it out, or train the full model")
    for name in settings.tuning.methods if hasattr(settings, "tuning") else ():
        reason = METHODS[name].whole
        check(not reason, f"--shard --tuning {name}: they do not combine, {reason}; leave one out")


def check_compile(settings, accelerator):
    """Raise UserError where --compile would do nothing, or cannot be done."""
    frozen = getattr(settings, "frozen", False)
    check(not frozen, "--compile: a frozen GPT-2 is read once: leave it out, or train the full model")
    check(not settings.training.shard, "--compile --shard: they are not tried together; leave one out")
    check(accelerator.device.type != "mps", "--compile needs CUDA or the CPU: leave --use_gpu or it out")
    check_compiler(accelerator.device)


def _contents(inputs):
    """Inputs less where they lie, which may differ from host to host."""
    return {what: value.get("sha256") if isinstance(value, dict) else value for what, value in inputs.items()}


def open_session(task, settings, given, prefix, part=""):
    """The Session that the flags ask for, with the learning rate and the precision made definite. Raises UserError.

    task: the script's name; prefix: what its runs' names begin with. given: the flags that were typed. A resumed run
    brings its own settings along. part: the script's first part, where it has parts.
    """
    found = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    check(found >= OLDEST_TORCH, f"torch {torch.__version__} is too old: this project needs 2.8 or newer")
    check_tracker(settings.run.log_with)
    run, settings = open_run(task, run_name(prefix, settings), settings, given, part)
    options = settings.training
    if options.lr is None:
        options.lr = default_learning_rate(settings.tuning.methods, settings.frozen)
    accelerator = make_accelerator(options, insist="use_gpu" in given)
    if options.shard:
        check_shard(settings, accelerator)
    if options.compile and not run.predicting:
        check_compile(settings, accelerator)
    options.precision = PRECISIONS[accelerator.mixed_precision]
    run, settings = in_first_process(lambda: (run, settings))  # the first process's choice of a folder is everyone's
    return Session(task, run, settings, accelerator)


def run_name(prefix, settings):
    """sonnet-lora-adapter, or sonnet-full, or -head; the prefix alone for a script that knows no tuning methods."""
    if not hasattr(settings, "tuning"):
        return prefix
    methods = [name for name in METHODS if name in settings.tuning.methods]
    return "-".join([prefix, *(methods or ["head" if settings.frozen else "full"])])


def make_accelerator(settings, insist=True):
    """The Accelerator for settings (TrainingSettings); prints what it took and why.

    insist: a missing GPU is a UserError; else (a run that was begun on one, and goes on here) the CPU is taken.
    """
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if settings.use_gpu and not has_gpu and insist:
        raise UserError("--use_gpu: torch sees no CUDA and no MPS device; leave the flag out to train on the CPU")
    device = "cpu" if not (settings.use_gpu and has_gpu) else "cuda" if torch.cuda.is_available() else "mps"
    precision = settings.precision
    if precision == "auto":
        precision = auto_precision(device)
    for name in FOREIGN_SETTINGS & os.environ.keys():
        del os.environ[name]
    if precision == "fp16":
        accelerator = HalfAccelerator(cpu=device == "cpu")
    else:
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    # The first process keeps the place where all meet: if it left for a user's error before the others are there, they
    # would end in a traceback of their own.
    accelerator.wait_for_everyone()
    why = (
        "asked for" if settings.precision != "auto" else "native here" if precision == "bf16" else "no native bf16 here"
    )
    say(f"device {accelerator.device}, precision {precision} ({why}), {accelerator.num_processes} process(es)")
    return accelerator


def auto_precision(device):
    """What --precision auto takes. CUDA without native bf16 (before compute capability 8.0: T4, V100) has fp16."""
    return "bf16" if has_native_bf16(device) else "fp16" if device == "cuda" else "fp32"


def has_native_bf16(device):
    """Whether the hardware multiplies bf16 matrices itself; elsewhere bf16 is emulated, and slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and not BF16_FEATURES.isdisjoint(cpu_features())


def cpu_features():
    """What the CPU says that it can do: from torch or, where an older one (2.8, 2.9) cannot be asked, from Linux."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, present in torch.cpu.get_capabilities().items() if present}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


@dataclass
class Assembly:
    """A GPT-2 with its tuning methods, and what follows from them.

    methods: {name: settings}. fingerprint: of the base model, before anything was attached. folder: where it lies.
    """

    gpt2: GPT2Model
    tokenizer: object
    methods: dict
    fingerprint: dict
    folder: Path

    def __post_init__(self):
        hooks = [(METHODS[name].after_step, settings) for name, settings in self.methods.items()]
        self.hooks = [make(self.gpt2, settings) for make, settings in hooks if make]

    def loss(self, loss_fn):
        """loss_fn(model, batch) -> (sum, count), with the methods' penalties added to the mean."""
        penalties = [(METHODS[name].penalty, s) for name, s in self.methods.items() if METHODS[name].penalty]

        def penalised(model, batch):
            loss, count = loss_fn(model, batch)
            return loss + count * sum(penalty(self.gpt2, settings) for penalty, settings in penalties), count

        return penalised if penalties else loss_fn

    def after_step(self, step, total_steps):
        """What the methods do after an optimizer step (counted from 1), before its gradients are cleared."""
        for hook in self.hooks:
            hook(step, total_steps)

    def merge(self):
        """Fold the methods into plain linears, in place. Raises UserError, and changes nothing, if that cannot be."""
        merge(self.gpt2, self.methods)

    def cast_for_prediction(self, precision):
        """For the end, when nothing is trained any more. precision: "fp32" (nothing to do), "bf16" or "fp16"."""
        if precision in HALF:
            cast_for_prediction(self.gpt2, HALF[precision])

    def pack_for_writing(self, rows, int8=False):
        """For the end, likewise, and after any cast: returns the head that decoders take, or None where the plain parts
        are as fast (not on the CPU). rows: texts written at a time."""
        if self.gpt2.word_embedding.weight.device.type != "cpu":
            return None
        return pack(self.gpt2, rows, int8)


def base_folder(model):
    """Where the base model that the settings (ModelSettings) name lies. Raises UserError."""
    path = model.model_path
    if path is not None and not Path(path).is_dir():
        wanted = "give one with config.json and model.safetensors"
        raise UserError(f"--model_path: {path} is no folder; {wanted}: {where_it_may_be(path)}")
    if path in MODEL_SIZES:  # a folder of such a name: the bare name would mean the hub's
        return Path(path).absolute()
    return Path(path) if path else find_model(model.model_size)


def assemble(settings, with_tokenizer=True):
    """The Assembly that a script's settings ask for, their precision being definite. Raises UserError."""
    methods = chosen_methods(settings)
    if settings.inference.merge:
        check_mergeable(methods)  # now, not after hours of training
    seed_everything(settings.training.seed)  # new tensors start the same in every run
    folder = base_folder(settings.model)
    tokenizer = load_tokenizer(folder) if with_tokenizer else None
    dropout = settings.model.dropout
    gpt2 = GPT2Model.from_pretrained(str(folder), **({} if dropout is None else dict.fromkeys(DROPOUTS, dropout)))
    if tokenizer and tokenizer.get_vocab_size() > gpt2.config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.get_vocab_size()} tokens, the model {gpt2.config.vocab_size}: "
            "they do not belong together"
        )
    base = fingerprint(gpt2, tokenizer)
    attach(gpt2, methods)
    if settings.frozen:
        freeze(gpt2, methods)
    if (methods or settings.frozen) and settings.training.precision in HALF:
        cast_frozen(gpt2, HALF[settings.training.precision])
    return Assembly(gpt2, tokenizer, methods, base, folder)


def load_trained(session, model):
    """Put the run's best epoch into model, ready to predict. Returns what a report wants to know, {name: text}."""
    run = session.run
    best = run.load_best(model)
    model.to(session.accelerator.device).eval()
    run.facts = in_first_process(record_of, session, model, best)
    return table_of(run.facts)
