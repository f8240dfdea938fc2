"""Look at a run, merge it into a plain model, and carry tuned tensors to peft and back.

python -m modules.tuning show RUN                     what was tuned, on what, with how many parameters
python -m modules.tuning merge RUN --out FOLDER       a whole GPT-2 that plain transformers opens
python -m modules.tuning export RUN --out FOLDER      peft's folder format, for Hugging Face GPT-2
python -m modules.tuning import FOLDER --run_dir RUN --task sonnet_generation --model_path MODEL
                                                      a run made from a peft folder, for --checkpoint RUN
"""

import argparse
import shutil
from pathlib import Path

from checkpoint import Run, fingerprint
from config import FlagParser, ParaphraseSettings, SonnetSettings, check, settings_from_dict
from datasets.files import check_writable
from models.gpt2 import GPT2Model
from models.hugging_face import TOKENIZER_FILES, find_model, save_pretrained
from models.paraphrase_gpt import ParaphraseGPT
from models.peft_format import from_peft, prompt_tensors, read_folder, to_peft, write_folder
from models.sonnet_gpt import SonnetGPT
from modules.tuning import (
    attach,
    check_mergeable,
    chosen_methods,
    count_parameters,
    load_tuning,
    merge,
    trainable_state_dict,
)

TASKS = {"sonnet_generation": SonnetSettings, "paraphrase_detection": ParaphraseSettings}


def main(arguments=None):
    parser = FlagParser(
        prog="python -m modules.tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("show", "merge", "export", "import"))
    parser.add_argument("source", help="a run folder; for import a peft folder")
    parser.add_argument("--out", help="merge, export: the folder to write")
    parser.add_argument("--run_dir", help="import: the run folder to make")
    parser.add_argument("--task", choices=TASKS, default="sonnet_generation", help="import: the script of the run")
    parser.add_argument("--model_path", help="the base model, where it is not where the run found it")
    parser.add_argument("--model_size", default=None, help="the same, by its size")
    options = parser.parse_args(arguments)
    needed = {"merge": "out", "export": "out", "import": "run_dir"}.get(options.action)
    check(needed is None or getattr(options, needed), f"{options.action} wants --{needed}: the folder to write")
    if needed:
        target = Path(getattr(options, needed))
        check_writable(target / "file")
        check(not target.exists() or not any(target.iterdir()), f"--{needed}: {target} is not empty: choose another")
    {"show": show, "merge": merge_run, "export": export_run, "import": import_folder}[options.action](options)


def open_run(options):
    """(task model with the run's best tensors, its methods, settings, base folder, score)"""
    run = Run(Path(options.source))
    record = run.record()
    check(record["task"] in TASKS, f"{options.source} is a run of {record['task']}, which tunes nothing")
    settings = settings_from_dict(TASKS[record["task"]], record["settings"])
    settings.model.model_path = options.model_path or (None if options.model_size else settings.model.model_path)
    settings.model.model_size = options.model_size or settings.model.model_size
    base = find_model(settings.model.model_path or settings.model.model_size)
    gpt2 = GPT2Model.from_pretrained(str(base))
    found = fingerprint(gpt2)
    check(
        found == record["base_fingerprint"],
        f"{base} is not the model that {options.source} was trained on (fingerprint {found}, not "
        f"{record['base_fingerprint']}): name that one with --model_path",
    )
    methods = chosen_methods(settings)
    attach(gpt2, methods)
    model = task_model(gpt2, settings)
    score = run.load_best(model)
    return model.eval(), methods, settings, base, score


def task_model(gpt2, settings):
    if isinstance(settings, ParaphraseSettings):
        return ParaphraseGPT(gpt2, settings.head, settings.pooling)
    return SonnetGPT(gpt2)


def show(options):
    model, methods, _, base, score = open_run(options)
    trained, total = count_parameters(model)
    rows = {
        "run": options.source,
        "base model": str(base),
        "methods": ", ".join(methods) or "full fine-tuning",
        "trained": f"{trained:,} of {total:,} parameters ({100 * trained / total:.2f} %)",
        "best epoch": f"{score['epoch']}, score {score['score']:.4f}",
    }
    for group in methods.values():
        rows |= {name: str(value) for name, value in (vars(group) if group else {}).items()}
    shapes = {}
    for name, tensor in trainable_state_dict(model).items():
        last = ".".join(name.split(".")[-2:])
        shapes.setdefault((last, tuple(tensor.shape)), []).append(name)
    rows |= {f"{len(names)} x {last}": str(list(shape)) for (last, shape), names in shapes.items()}
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


def merge_run(options):
    model, methods, _, base, _ = open_run(options)
    if methods:
        check_mergeable(methods)
        merge(model.gpt, methods)
    save_pretrained(model.gpt, options.out)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, Path(options.out, name))
    _say_what_stays(model)
    print(f"{options.out}: a plain GPT-2, for --model_path and for transformers")


def export_run(options):
    model, methods, _, base, _ = open_run(options)
    tensors = trainable_state_dict(model.gpt) | prompt_tensors(model.gpt)
    write_folder(options.out, *to_peft(methods, tensors, model.gpt.config, base))
    _say_what_stays(model)
    if "ptuning" in methods:
        print("peft keeps the virtual tokens, not the network that wrote them: it comes back as prompt tuning")
    if "qlora" in methods:
        print("the base was quantised while training: for the same answers, quantise it in peft as well")
    print(f"{options.out}: for peft.PeftModel.from_pretrained on Hugging Face GPT-2")


def _say_what_stays(model):
    heads = sorted({name.split(".")[0] for name in trainable_state_dict(model) if not name.startswith("gpt.")})
    if heads:
        print(f"not part of it: the task's own {' and '.join(heads)}")


def import_folder(options):
    record, tensors = read_folder(options.source)
    base = find_model(options.model_path or options.model_size or record.get("base_model_name_or_path") or "gpt2")
    gpt2 = GPT2Model.from_pretrained(str(base))
    found = fingerprint(gpt2)
    methods, ours = from_peft(record, tensors, gpt2.config)
    attach(gpt2, methods)
    load_tuning(gpt2, ours, options.source)
    settings = TASKS[options.task]()
    settings.model.model_path = str(base)
    settings.tuning.tuning = tuple(methods)
    for name, group in methods.items():
        setattr(settings, name, group)
    run = Run(Path(options.run_dir))
    model = task_model(gpt2, settings)
    run.begin(options.task, settings, found)
    run.save_best(model, {"epoch": 0, "score": 0.0})
    print(f"{options.run_dir}: {', '.join(methods)}, for {options.task}.py --checkpoint {options.run_dir}")
