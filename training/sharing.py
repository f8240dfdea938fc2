"""What a run needs to be shared: the name of its base, a model card (Mitchell et al. 2019), the way to the hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from cli.flags import settings_to_dict
from cli.tables import markdown_lines, plus_minus
from config import MODEL_SIZES, TuningSettings
from errors import UserError
from training.tasks import SETTINGS

PURPOSES = {
    "sonnet_generation": "completes sonnets from their first three lines",
    "paraphrase_detection": "tells whether two questions ask the same",
    "classifier": "tells how a movie review likes its film",
}
LOADERS = {"peft": "AutoPeftModelForCausalLM", "transformers": "AutoModelForCausalLM"}
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a folder of the hub's cache


def base_name(folder, size, name=None):
    """What the hub calls a base model or, where that is not known, its local folder.

    folder, size: --model_path and --model_size of a run. name: what a user calls it.
    """
    if name or not folder:
        return name or MODEL_SIZES[size][0]
    parts = filter(None, map(_CACHED.fullmatch, Path(folder).parts))
    return next(("/".join(part.groups()) for part in parts), str(Path(folder).absolute()))


def model_card(run, base, library, licence=None):
    """The README.md of what a run gives others: what it is, its data, figures and settings, under the hub's header.

    run: Run. base: as from `base_name`. library: "peft" or "transformers". licence: as the hub calls it; None: nobody
    said. Data go by the names of their files, so that no card shows its maker's folders. Raises UserError.
    """
    record = run.record()
    settings, task = record["settings"], record["task"]
    methods = TuningSettings(**settings["tuning"]).methods
    known = {} if Path(base).is_dir() else {"base_model": base}
    header = ModelCardData(
        library_name=library,
        license=licence or "unknown",
        language="en",
        pipeline_tag="text-generation",
        tags=["gpt2", task.replace("_", "-"), *methods],
        **known,
    )
    loader, what = LOADERS[library], " and ".join(methods) or "full fine-tuning"
    return f"""---
{header.to_yaml()}
---

# {run.folder.name}

A GPT-2 that {PURPOSES[task]}: {what} on {known.get("base_model", Path(base).name)}, by `{task}.py` of a GPT-2 codebase
for courses. It knows what its base and its data know, their errors and prejudices included; what was measured stands
below.

    from {library} import {loader}

    model = {loader}.from_pretrained("this folder, or its name on the hub")

## Data

{_data(record.get("inputs", {}))}
## Figures

{_figures(run.reported())}
## Settings

{_settings(SETTINGS[task], settings)}
## Licence

{licence or "Not stated: ask whoever made it. The base model and the data have licences of their own."}
"""


def _data(inputs):
    rows = [
        (name, Path(data["file"]).name, f"{data['rows']:,}", f"`{data['sha256']}`")
        for name, data in inputs.items()
        if isinstance(data, dict) and "sha256" in data
    ]
    return _table(("what", "file", "rows", "SHA-256 of the rows"), rows)


def _figures(report):
    """The table that the script printed at its end, and its scores, but for what speaks of the maker's folders."""
    rows = [(name, text) for name, text in report.get("figures", {}).items() if name != "run"]
    for name, row in report.get("scores", {}).items():
        for figure, value in row.items():
            rows.append((f"{name}: {figure}", plus_minus(value) if isinstance(value, list) else str(value)))
    return _table(("figure", "value"), rows)


def _settings(settings_class, settings):
    """What is not as it is by default, files and folders aside."""
    defaults = settings_to_dict(settings_class())
    rows = [
        (f"`--{name}`", f"`{value}`")
        for group, values in settings.items()
        if group not in ("data", "run")
        for name, value in values.items()
        if name != "model_path" and _plain(defaults[group].get(name)) != _plain(value)
    ]
    return _table(("flag", "value"), rows)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value  # as JSON has it


def _table(head, rows):
    if not rows:
        return "none recorded\n"
    return markdown_lines([head, ["---"] * len(head), *rows])


def push(folder, repository, private=False):
    """Upload a folder to a model repository of the hub, made where it is missing; returns its address. UserError."""
    remedy = f"{folder} is complete, so `hf upload {repository} {folder}` is all that is left to do"
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of a run")
    except HFValidationError as error:
        raise UserError(f"--push_to_hub: {repository} is no name on the hub, as me/my-lora is; {remedy}") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"the hub wants to know who you are: `hf auth login`; {remedy}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = (
            "log in by `hf auth login` with a token that may write" if status in (401, 403) else error.server_message
        )
        raise UserError(f"the hub answered {status} for {repository} ({advice}); {remedy}") from error
    except Exception as error:  # the network's, and any at all for an answer that is none of the hub's
        raise UserError(f"cannot reach the Hugging Face hub ({type(error).__name__}); {remedy}") from error
    return f"{api.endpoint}/{repository}"
