"""The file of --settings: TOML, or what a run has recorded. Read here; cli/flags.py checks it as it checks typed flags.

TOML: a flag a line, by its name, without tables: `lora_rank = 4`, `lora = true`, `tuning = ["lora", "adapter"]`.
The settings.json of a run lists every setting in groups; there, what is a flag's default counts as not given.
"""

import tomllib
from pathlib import Path

from errors import UserError, check
from files import read_json, read_text


def read_settings(path):
    """({name: value}, whether it is a run's record). Raises UserError."""
    if Path(path).suffix.lower() == ".json":
        groups = read_json(path, remedy="give another file").get("settings")
        sound = isinstance(groups, dict) and all(isinstance(group, dict) for group in groups.values())
        check(sound, f"{path} is not the settings.json of a run: give that, or a TOML file")
        return {name: value for group in groups.values() for name, value in group.items()}, True
    try:
        values = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML ({error}): write a line NAME = VALUE for each flag") from error
    table = next((name for name, value in values.items() if isinstance(value, dict)), None)
    check(table is None, f"{path}: {table} is a table: write a line NAME = VALUE for each flag, without tables")
    return values, False
