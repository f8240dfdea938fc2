"""A training of a second at most that tests kill, damage, and go on with; on its own, or in a process that is killed.

Processes are forked from a server that has imported torch and has done nothing else: each costs a few hundredths.
"""

import importlib
import multiprocessing
import os
import re
import signal
import socket
from pathlib import Path

import torch

from config import LoRASettings, SonnetSettings, TrainingSettings
from datasets import LengthGroupedBatches
from models.gpt2 import GPT2Model
from models.sonnet_gpt import SonnetGPT, language_model_loss
from tests.helpers import RandomRows
from tests.inputs import ROOT
from tests.tiny import forget_accelerate_state
from training.assembly import make_accelerator
from training.inputs import content_hash
from training.loop import TrainingLoop, to_device, total_steps
from training.runs import Run
from tuning.attach import attach

BASE = {"weights": "", "config": {}}
SETTINGS = {"epochs": 3, "batch_size": 4, "lr": 3e-3, "precision": "fp32", "save_minutes": 1e-9}
SHORT = {"save_minutes": 0, "epochs": 2, "rows": 5}  # 2 steps an epoch
EVERYTHING = ("last/model.safetensors", "last/optimizer.safetensors", "last/state.json", "best/model.safetensors")
TIMES = re.compile(rb'"seconds": [\d.]+')
KILLED = -signal.SIGKILL


def train(
    model_folder, folder, resumed=False, loss_fn=language_model_loss, after_step=None, score=None, rows=14, **new
):
    """The loop on 14 random rows (4 steps an epoch, dropout on), kept in `folder`, which is returned."""
    forget_accelerate_state()
    settings = TrainingSettings(**SETTINGS | new)
    torch.manual_seed(1)
    gpt2 = GPT2Model.from_pretrained(str(model_folder))
    attach(gpt2, {"lora": LoRASettings(lora_rank=2)})
    model, dev = SonnetGPT(gpt2), RandomRows(3, seed=1, lengths=(3, 9))
    accelerator = make_accelerator(settings)
    rank, world = accelerator.process_index, accelerator.num_processes
    dataset = RandomRows(rows, lengths=(3, 9))
    batches = LengthGroupedBatches(dataset, settings.batch_size, True, settings.seed, rank, world)

    def evaluate(model):
        if score is not None:
            return {"score": score}
        batch = to_device(dev.collate_fn([dev[i] for i in range(3)]), accelerator.device)
        loss, count = language_model_loss(model, batch)
        return {"score": -(loss / count).item()}

    run = Run(Path(folder), resumed=resumed, total_steps=(steps := total_steps(batches, settings)))
    if accelerator.is_main_process:
        inputs = {"rows": content_hash([row.tolist() for row in dataset.rows], "rows.txt")}
        run.begin("test", SonnetSettings(training=settings), BASE, inputs, steps)
    accelerator.wait_for_everyone()
    TrainingLoop(model, settings, run, accelerator, after_step).fit(batches, loss_fn, evaluate)
    run.load_best(model)
    return run.folder


def contents(folder):
    """The bytes of all that a run is; times aside."""
    files = {name: (Path(folder) / name).read_bytes() for name in EVERYTHING}
    return files | {"metrics": TIMES.sub(b"", (Path(folder) / "metrics.jsonl").read_bytes())}


# --- in processes of their own ----------------------------------------------------------------------------------------


def in_a_process(function, *arguments):
    """Call function(*arguments) in a process of its own; its exit code, -9 where it was killed."""
    return in_processes(1, function, *arguments)[0]


def in_processes(world, function, *arguments):
    """The same in several processes that train as one, as torchrun starts them; all their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    os.environ["PYTHONPATH"] = str(ROOT)  # the server is told of no other path to this file
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    each = [together | {"RANK": rank, "LOCAL_RANK": rank} if world > 1 else {} for rank in range(world)]
    processes = [context.Process(target=_with, args=(variables, function, *arguments)) for variables in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode is not None, "the process hangs"
    return [process.exitcode for process in processes]


def _with(variables, function, *arguments):
    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in variables.items()}
    function(*arguments)


def killed_training(kill, model_folder, folder, options):
    """A training that SIGKILL ends: kill is ("step", number), (module, function, number, "before" or "after"), or ().

    The second form counts the calls of a function of a module, for instance ("os", "fsync", 3, "before").
    """
    if kill[:1] == ("step",):
        options = options | {"after_step": lambda step, total: step == kill[1] and os.kill(os.getpid(), signal.SIGKILL)}
    elif kill:
        _kill_at_call(*kill)
    train(model_folder, folder, **options)


def _kill_at_call(module, name, number, when):
    module = importlib.import_module(module)
    real, calls = getattr(module, name), []

    def call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = real(*arguments, **options)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome

    setattr(module, name, call)
