"""Where a model's files are: a local folder, the hub's cache, or the Hugging Face hub itself."""

import contextlib
import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub  # what is asked of it is only then imported, which takes half a second: no folder needs it
from huggingface_hub.constants import ENDPOINT, HF_HUB_ETAG_TIMEOUT

from config import MODEL_SIZES
from errors import UserError, check
from files import read_json, shortened, where_it_may_be

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")  # owner/model
# Seconds to look up the hub's name, which fails where there is no network, and to wait for its first answer: ten, or
# what the hub's own variable HF_HUB_ETAG_TIMEOUT says.
_NAME_TIMEOUT = 2.0
_HUB_TIMEOUT = float(HF_HUB_ETAG_TIMEOUT)


def find_model(model):
    """The local folder of a model: itself, or the hub's cached or freshly downloaded copy. Raises UserError.

    A released size is always the hub's: a folder of that name (a clone of this project, say) is none. Any other folder
    counts where it has a config.json.
    """
    if model in MODEL_SIZES:
        return _from_hub(MODEL_SIZES[model][0])
    folder = Path(model)
    try:
        found = (folder / "config.json").is_file()
    except OSError as error:  # a name that is too long, say
        raise UserError(f"model folder {shortened(model)} cannot be read ({error.strerror}): check the path") from error
    if found:
        return folder
    if not _HUB_NAME.fullmatch(model):
        check(not folder.is_dir(), f"{model} holds no config.json: it is no model folder in Hugging Face layout")
        raise UserError(
            f"model folder {model} does not exist: give a folder with config.json and model.safetensors; "
            f"{where_it_may_be(model)}"
        )
    try:
        return _from_hub(model)
    except UserError as error:
        check(not folder.is_dir(), f"{model} holds no config.json: it is no model folder; and {error}")
        raise


def _from_hub(repository):
    folder = _cached(repository)
    if folder is None or not has_tokenizer(folder):
        try:
            return _download(repository)  # only what is missing
        except UserError:
            if folder is None:
                raise
    return folder


def has_tokenizer(folder):
    """Whether a folder holds a tokenizer."""
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def _cached(repository):
    """The folder of the complete weights of a repository in the hub's cache, or None."""
    try:
        config = huggingface_hub.try_to_load_from_cache(repository, "config.json")
    except huggingface_hub.errors.HFValidationError as error:
        raise UserError(f"{repository} is no name that a model on the hub can have: check it") from error
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
        patterns = ["config.json", *TOKENIZER_FILES, *weights]
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # the network's, the disk's, and any at all for an answer that is none of the hub's
        raise UserError(
            f"the download of {repository} broke off ({type(error).__name__}): run again to go on"
        ) from error


def _files_on_hub(repository):
    """The names of a repository's files: one quick question first, as a download retries long before it gives up."""
    api, answer, looked_up = huggingface_hub.HfApi(), [], threading.Event()

    def ask():
        with contextlib.suppress(OSError):
            if not getproxies():  # behind a proxy the name may be none here, and the hub be reached
                socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
        looked_up.set()
        try:
            answer.append(api.model_info(repository, timeout=_HUB_TIMEOUT))
        except Exception as error:  # the network's, the hub's own offline mode, an answer that is none of the hub's
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # looking up the host's name has no timeout of its own
    thread.start()
    if looked_up.wait(_NAME_TIMEOUT):
        thread.join(_HUB_TIMEOUT)
    outcome = answer[0] if answer else TimeoutError()
    if isinstance(outcome, huggingface_hub.errors.GatedRepoError):
        raise UserError(f"{repository} is gated: accept its terms on the hub and log in with `hf auth login`")
    if isinstance(outcome, huggingface_hub.errors.RepositoryNotFoundError):
        raise UserError(f"the hub has no model {repository}: check the name, or give a folder to --model_path")
    if isinstance(outcome, Exception):
        raise UserError(
            f"cannot reach the Hugging Face hub for {repository} and it is not in the local cache "
            f"({type(outcome).__name__}): connect once, or give --model_path a local folder with config.json, "
            "model.safetensors and the tokenizer"
        )
    return [sibling.rfilename for sibling in outcome.siblings]


def weight_files(folder):
    """The files with a checkpoint's tensors, safetensors preferred; [] where there are none. Raises UserError."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return _shards(index)
    return []


def _shards(index):
    """The files that an index of a sharded checkpoint names, each once."""
    weight_map = read_json(index, {"weight_map": dict}, remedy="download the model again")["weight_map"]
    for shard in weight_map.values():
        is_name = isinstance(shard, str) and shard == Path(shard).name and "\0" not in shard and len(shard) < 200
        check(is_name, f"{index} is damaged (weight_map says {shortened(shard)}, no file's name): download it again")
    check(weight_map, f"{index} is damaged (weight_map is empty): download the model again")
    files = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    for file in files:
        check(file.is_file(), f"{index} names {file.name}, which is missing: download the model again")
    return files
