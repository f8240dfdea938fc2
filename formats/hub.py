"""Where a model's files are: a local folder, the hub's cache, or the Hugging Face hub itself."""

import json
import threading
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

from config import MODEL_SIZES
from errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
_HUB_TIMEOUT = 3.0  # seconds to wait for the hub's first answer


def find_model(model):
    """The local folder of a model: itself, or the hub's cached or freshly downloaded copy. Raises UserError."""
    if Path(model).is_dir():
        return Path(model)
    if model not in MODEL_SIZES and (Path(model).is_absolute() or model.count("/") != 1 or model.startswith(".")):
        raise UserError(f"model folder {model} does not exist: give a folder with config.json and model.safetensors")
    repository = MODEL_SIZES[model][0] if model in MODEL_SIZES else model
    return _cached(repository) or _download(repository)


def _cached(repository):
    """The folder of a repository's complete copy in the hub's cache, or None."""
    config = try_to_load_from_cache(repository, "config.json")
    if not isinstance(config, str):
        return None
    try:
        files = weight_files(Path(config).parent)
    except UserError:  # an earlier download was cut off: the hub's client goes on where it stopped
        return None
    return Path(config).parent if files else None


def _download(repository):
    safetensors = any(name.endswith(".safetensors") for name in _files_on_hub(repository))
    weights = ["*.safetensors", "*.safetensors.index.json"] if safetensors else ["pytorch_model*"]
    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", *TOKENIZER_FILES, *weights]))
    except (HTTPError, OSError) as error:
        raise UserError(
            f"the download of {repository} broke off ({type(error).__name__}): run again to go on"
        ) from error


def _files_on_hub(repository):
    """The names of a repository's files: one quick question first, as a download retries long before it gives up."""
    answer = []

    def ask():
        try:
            answer.append(HfApi().model_info(repository, timeout=_HUB_TIMEOUT))
        except (HTTPError, OSError) as error:  # OSError: also the hub's own offline mode
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # looking up the host's name has no timeout of its own
    thread.start()
    thread.join(_HUB_TIMEOUT)
    outcome = answer[0] if answer else TimeoutError()
    if isinstance(outcome, RepositoryNotFoundError):
        raise UserError(f"the hub has no model {repository}: check the name, or give a folder to --model_path")
    if isinstance(outcome, Exception):
        raise UserError(
            f"cannot reach the Hugging Face hub for {repository} and it is not in the local cache "
            f"({type(outcome).__name__}): connect once, or give --model_path a local folder with config.json, "
            "model.safetensors and the tokenizer"
        )
    return [sibling.rfilename for sibling in outcome.siblings]


def weight_files(folder):
    """The files with a checkpoint's tensors, safetensors preferred; [] where there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
                raise UserError(f"{index} is damaged ({error!r}): download the model again") from error
            files = [folder / shard for shard in sorted(set(weight_map.values()))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise UserError(f"{index} names {absent[0]}, which is missing: download the model again")
            return files
    return []
