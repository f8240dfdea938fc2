"""Look at a run, switch between runs, merge one, carry it to peft and back.

python exchange.py show RUN
    what was tuned, on what, with how many parameters
python exchange.py switch RUN RUN ...
    what moving between runs on one base costs, and that it is exact
python exchange.py merge RUN --out FOLDER
    a whole GPT-2 that plain transformers opens; --push_to_hub uploads it
python exchange.py export RUN --out FOLDER
    peft's folder format, for Hugging Face GPT-2; --push_to_hub uploads it
python exchange.py import FOLDER --run_dir RUN --task TASK --model_path MODEL
    a run made from a peft folder, for --checkpoint RUN
"""

import argparse

from cli.flags import FlagParser, refuse_unused
from cli.script import on_stop, run_script, start

TASKS = ("sonnet_generation", "paraphrase_detection")


def parse(arguments=None):
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("show", "switch", "merge", "export", "import"))
    parser.add_argument("source", help="a run folder; for import a peft folder")
    parser.add_argument("others", nargs="*", default=[], help="switch: more run folders, on the same base model")
    parser.add_argument("--out", help="merge, export: the folder to write")
    parser.add_argument("--run_dir", help="import: the run folder to make")
    parser.add_argument("--task", choices=TASKS, help=f"import: the script of the run (default: {TASKS[0]})")
    parser.add_argument("--model_path", help="the base model, where it is not where the run found it")
    parser.add_argument("--model_size", help="the same, by its size")
    parser.add_argument("--push_to_hub", metavar="REPO", help="merge, export: upload it there, too (me/my-lora)")
    parser.add_argument("--private", action="store_true", help="with --push_to_hub: a new repository only you can see")
    parser.add_argument("--base_model", help="merge, export: what the hub calls the base, where it is a local folder")
    parser.add_argument("--licence", help="merge, export: for the model card, as the hub calls it (mit, cc-by-4.0)")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # before the heavy imports, so that --help and typing errors answer at once
    OPTIONS = start(parse)

import contextlib
import os
import shutil
import statistics
import time
from pathlib import Path

import torch
from safetensors import SafetensorError

from cli.tables import format_table
from errors import UserError, check
from files import check_writable, sync_folder, unfinished, write_text
from formats.hub import TOKENIZER_FILES, find_model
from formats.hugging_face import read_config, save_pretrained
from formats.peft import read_folder, write_folder
from models.gpt2 import GPT2Model
from training.assembly import assemble
from training.runs import Run
from training.sharing import base_name, model_card, push
from training.tasks import SETTINGS, Tasks, open_tuned, task_model
from tuning.portable import from_peft, prompt_tensors, to_peft
from tuning.register import default_learning_rate
from tuning.state import count_parameters, load_tuning, trainable_state_dict

ROUNDS = 20  # of switching, for the median


def main(options):
    needed = {"merge": "out", "export": "out", "import": "run_dir"}.get(options.action)
    check(needed is None or getattr(options, needed), f"{options.action} wants --{needed}: the folder to write")
    if needed:
        target = Path(getattr(options, needed))
        check_writable(target / "file")
        check(not target.exists() or not any(target.iterdir()), f"--{needed}: {target} is not empty: choose another")
    check(options.action == "switch" or not options.others, f"{options.action} takes one folder, not several")
    used = {"action", "source", "others", "model_path", "model_size", needed}
    used |= {"task"} if options.action == "import" else set()
    used |= {"push_to_hub", "private", "base_model", "licence"} if options.action in ("merge", "export") else set()
    refuse_unused(options, used, options.action)
    check(options.push_to_hub or not options.private, "--private has no effect without --push_to_hub: leave it out")
    actions = {"show": show, "switch": switch_runs, "merge": merge_run, "export": export_run, "import": import_folder}
    actions[options.action](options)


@contextlib.contextmanager
def whole_folder(target):
    """A new folder that becomes target (absent, or empty) where this context ends well, and else is removed."""
    target = Path(target).resolve()
    beside = unfinished(target)
    try:
        beside.mkdir(parents=True)
        yield beside
        for file in beside.rglob("*"):
            _sync(file)
        if target.is_dir():
            target.rmdir()
        os.rename(beside, target)
        sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {target} ({reason}): make room, or choose another place") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync(path):
    """Put a file, or a folder's names, on the disk."""
    if path.is_dir():
        return sync_folder(path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def show(options):
    tuned, model, settings, score = open_tuned(options.source, options.model_path, options.model_size)
    trained, total = count_parameters(model)
    rows = {
        "run": options.source,
        "base model": str(tuned.folder),
        "methods": ", ".join(tuned.methods) or ("none, GPT-2 is frozen" if settings.frozen else "full fine-tuning"),
        "trained": f"{trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)",
        "best epoch": f"{score['epoch']}, score {score['score']:.4f}",
    }
    for group in tuned.methods.values():
        rows |= {name: str(value) for name, value in (vars(group) if group else {}).items()}
    shapes = {}
    for name, tensor in trainable_state_dict(model).items():
        last = ".".join(name.split(".")[-2:])
        shapes.setdefault((last, tuple(tensor.shape)), []).append(name)
    rows |= {f"{len(names)} x {last}": str(list(shape)) for (last, shape), names in shapes.items()}
    print(format_table(rows), end="")


@torch.no_grad()
def switch_runs(options):
    """Print what switching between runs costs, beside loading a model, and whether coming back is exact."""
    runs = dict.fromkeys([options.source, *options.others])
    tasks = Tasks({run: run for run in runs}, options.model_path, options.model_size)
    vocabulary, length = tasks.base.config.vocab_size, min(32, tasks.base.config.max_position_embeddings // 2)
    ids = torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    base = tasks.base(ids, mask)["last_hidden_state"]
    first, seconds, exact = {}, {run: [] for run in runs}, dict.fromkeys(runs, True)
    for round_ in range(ROUNDS):
        for run in runs:
            start = time.perf_counter()
            model = tasks.switch(run)
            seconds[run].append(time.perf_counter() - start)
            if round_ in (0, ROUNDS - 1):
                exact[run] &= torch.equal(model(ids, mask), first.setdefault(run, model(ids, mask)))
    same = torch.equal(tasks.switch(None)(ids, mask)["last_hidden_state"], base)
    loading = statistics.median(_time_of(GPT2Model.from_pretrained, str(tasks.folder)) for _ in range(3))
    rows = {
        run: {
            "to switch": f"{1000 * statistics.median(seconds[run]):.2f} ms",
            "to load a model": f"{1000 * loading:.0f} ms",
            "bytes of its own": f"{tasks.bytes(run):,}",
            "the same after coming back": "bit for bit" if exact[run] else "no",
        }
        for run in runs
    }
    size = sum(p.numel() * p.element_size() for p in tasks.base.parameters())
    print(format_table(rows), end="")
    print(f"the base, {tasks.folder}: {size:,} bytes, at the end {'bit for bit' if same else 'not'} as it was loaded")


def _time_of(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def merge_run(options):
    base = base_for_others(options)
    tuned, model, _, _ = open_tuned(options.source, options.model_path, options.model_size)
    if tuned.methods:
        tuned.merge()
    with whole_folder(options.out) as folder:
        save_pretrained(tuned.gpt2, folder)
        for name in TOKENIZER_FILES:
            if (tuned.folder / name).is_file():
                shutil.copyfile(tuned.folder / name, folder / name)
        write_card(folder, options, base, "transformers")
    _say_what_stays(model)
    print(f"{options.out}: a plain GPT-2, for --model_path and for transformers")
    share(options)


def export_run(options):
    base = base_for_others(options)
    tuned, model, _, _ = open_tuned(options.source, options.model_path, options.model_size)
    tensors = trainable_state_dict(tuned.gpt2) | prompt_tensors(tuned.gpt2)
    exported = to_peft(tuned.methods, tensors, tuned.gpt2.config, base)
    with whole_folder(options.out) as folder:
        write_folder(folder, *exported)
        write_card(folder, options, base, "peft")
    _say_what_stays(model)
    if "ptuning" in tuned.methods:
        print("peft keeps the virtual tokens, not the network that wrote them: it comes back as prompt tuning")
    if "qlora" in tuned.methods:
        print("the base was quantised while training: for the same answers, quantise it in peft as well")
    print(f"{options.out}: for peft.PeftModel.from_pretrained on Hugging Face GPT-2")
    share(options)


def base_for_others(options):
    """What the base of the run is called. Raises UserError where others would be led to a folder of this machine."""
    model = Run(Path(options.source)).record()["settings"]["model"]
    base = base_name(model["model_path"], model["model_size"], options.base_model)
    if Path(base).is_dir():
        check(
            not options.push_to_hub,
            f"the base is a folder of this machine, {base}: name the hub's by --base_model, so that others can open it",
        )
        print(f"the base is the folder {base}: give --base_model what the hub calls it before you share this")
    return base


def write_card(folder, options, base, library):
    write_text(folder / "README.md", model_card(Run(Path(options.source)), base, library, options.licence))


def share(options):
    if options.push_to_hub:
        print(f"uploaded: {push(options.out, options.push_to_hub, options.private)}")


def _say_what_stays(model):
    heads = sorted({name.split(".")[0] for name in trainable_state_dict(model) if not name.startswith("gpt.")})
    if heads:
        print(f"not part of it: the task's own {' and '.join(heads)}")


def import_folder(options):
    record, tensors = read_folder(options.source)
    wanted, revision = options.model_path or options.model_size, record.get("revision")
    known = wanted or revision in (None, "", "main")
    check(known, f"{options.source} was trained on revision {revision!r} of its base: give that model by --model_path")
    base = find_model(wanted or record.get("base_model_name_or_path") or "gpt2")
    methods, ours = from_peft(record, tensors, read_config(base))
    task = options.task or TASKS[0]
    settings = SETTINGS[task]()
    settings.model.model_path, settings.tuning.tuning = str(base), tuple(methods)
    settings.training.lr, settings.training.precision = default_learning_rate(methods), "fp32"
    for name, group in methods.items():
        setattr(settings, name, group)
    tuned = assemble(settings, with_tokenizer=False)
    load_tuning(tuned.gpt2, ours, options.source)
    with whole_folder(options.run_dir) as folder:
        run = Run(folder)
        with contextlib.closing(run):
            run.begin(task, settings, tuned.fingerprint)
            on_stop("nothing was kept")  # a run that goes on is none yet
            run.save_best(task_model(tuned.gpt2, settings), {"epoch": 0, "score": 0.0})
    print(f"{options.run_dir}: {', '.join(methods)}, for {task}.py --checkpoint {options.run_dir}")


if __name__ == "__main__":
    run_script(main, OPTIONS)
