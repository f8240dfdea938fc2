"""Runs as tasks: the base model is loaded once, and one moves between runs by name (tuning/switching.py says how).

tasks = Tasks({"sonnets": "runs/sonnet-lora", "pairs": "runs/paraphrase-lora"})
pairs = tasks.switch("pairs")
"""

from functools import partial
from pathlib import Path

from cli.flags import settings_from_dict
from config import CLASSES, DROPOUTS, ClassifierSettings, ParaphraseSettings, SonnetSettings
from datasets import load_tokenizer
from errors import check
from formats.hub import has_tokenizer
from models.gpt2 import GPT2Model
from models.paraphrase_gpt import ParaphraseGPT
from models.sentiment_gpt import SentimentGPT
from models.sonnet_gpt import SonnetGPT
from training.assembly import assemble, base_folder
from training.inputs import check_base, fingerprint
from training.runs import Run
from tuning.register import chosen_methods
from tuning.switching import Switch

SETTINGS = {
    "sonnet_generation": SonnetSettings,
    "paraphrase_detection": ParaphraseSettings,
    "classifier": ClassifierSettings,
}


def read_run(folder, model_path=None, model_size=None):
    """(Run, its record, its settings) of a run of a task. model_path, model_size: the base, where it lies elsewhere."""
    run = Run(Path(folder))
    record = run.record()
    check(record["task"] in SETTINGS, f"{folder} is a run of {record['task']}, which tunes nothing")
    settings = settings_from_dict(SETTINGS[record["task"]], record["settings"])
    settings.model.model_path = model_path or (None if model_size else settings.model.model_path)
    settings.model.model_size = model_size or settings.model.model_size
    settings.training.precision, settings.inference.merge = "fp32", False  # what is carried on is not rounded
    return run, record, settings


def open_tuned(source, model_path=None, model_size=None):
    """(the Assembly, the task's model with the run's best tensors, its settings, its score) of a run folder.

    model_path, model_size: the base model, where it is not where the run found it. Raises UserError.
    """
    run, record, settings = read_run(source, model_path, model_size)
    tuned = assemble(settings, with_tokenizer=False)
    check_base(record, tuned.fingerprint, source)
    model = task_model(tuned.gpt2, settings, record.get("part"))
    score = run.load_best(model)
    return tuned, model.eval(), settings, score


def task_model(gpt2, settings, part=None):
    """The model of a task's settings. part: of a script that has parts, which one."""
    if isinstance(settings, ClassifierSettings):
        return SentimentGPT(gpt2, CLASSES[part], settings.head, settings.pooling)
    if isinstance(settings, ParaphraseSettings):
        return ParaphraseGPT(gpt2, settings.head, settings.pooling)
    return SonnetGPT(gpt2)


class Tasks:
    """The best epochs of several runs on one base model, for prediction, one at a time.

    runs: {name: run folder}. model_path, model_size: the base model, where it is not where the first run found it.
    tokenizer: the base's, None where it has none. Raises UserError, for instance where a run has another base, or
    fine-tuned all of it.
    """

    def __init__(self, runs, model_path=None, model_size=None, device="cpu"):
        check(runs, "there is no run to switch to: name one at least")
        found = {name: read_run(folder, model_path, model_size) for name, folder in runs.items()}
        self.folder = base_folder(next(iter(found.values()))[2].model)
        gpt2 = GPT2Model.from_pretrained(str(self.folder))
        self.tokenizer = load_tokenizer(self.folder) if has_tokenizer(self.folder) else None
        base = fingerprint(gpt2, self.tokenizer)
        self.switchboard, self.models = Switch(gpt2.to(device)), {}
        for name, (run, record, settings) in found.items():
            dropouts = {} if settings.model.dropout is None else dict.fromkeys(DROPOUTS, settings.model.dropout)
            check_base(record, base | {"config": base["config"] | dropouts}, runs[name])
            with self.switchboard.fitting(name, chosen_methods(settings), settings.frozen):
                model = task_model(gpt2, settings, record.get("part")).to(device)
                run.load_best(model)
            model.register_forward_pre_hook(partial(self._check_current, name))
            self.models[name] = model.eval().requires_grad_(False)

    @property
    def base(self):
        """The GPT2Model that all tasks share: as it was loaded after `switch(None)`, else with the current task's."""
        return self.switchboard.gpt2

    def switch(self, name):
        """This run's model (SonnetGPT, ParaphraseGPT, SentimentGPT), ready to predict; for None the base alone."""
        self.switchboard.to(name)
        return self.base if name is None else self.models[name]

    def bytes(self, name):
        """What a task holds in memory beyond the base, its head included."""
        head = [p for key, p in self.models[name].named_parameters() if not key.startswith("gpt.")]
        return self.switchboard.bytes(name) + sum(p.numel() * p.element_size() for p in head)

    def _check_current(self, name, *_):
        current = self.switchboard.current
        check(current == name, f"the model of {name} was called while {current} is on: call switch({name!r}) first")
