"""A run's lines of metrics in TensorBoard, Weights & Biases or trackio as well, through accelerate's trackers."""

import importlib.util

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from cli.flags import settings_to_dict
from errors import UserError, check


def check_tracker(name):
    """Raise UserError where the package is missing: now, not after an hour of reading data."""
    there = name == "none" or importlib.util.find_spec(name) is not None
    check(there, f"--log_with {name}: that package is not installed here; pip install {name}, or leave the flag out")


class Tracker:
    """name: of --log_with. run: a Run that has begun. settings: what is shown as its configuration."""

    def __init__(self, name, run, settings):
        kind = LOGGER_TYPE_TO_CLASS[name]
        more = {"logging_dir": str(run.folder)} if kind.requires_logging_directory else {}
        self.step = 0
        try:
            self.tracker = kind(name if more else run.folder.name, **more)
            self.tracker.start()
            self.tracker.store_init_configuration(_flat(settings))
        except Exception as error:  # whatever a foreign service raises: no login, no network, no room
            raise UserError(f"--log_with {name} does not start ({error}): mend that, or leave the flag out") from error

    def log(self, record):
        """A line of metrics: of a step, or of an epoch, which counts as the last step's."""
        self.step = record.get("step", self.step)
        numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}
        self.tracker.log(numbers, step=self.step)

    def close(self):
        self.tracker.finish()


def _flat(settings):
    """{flag: value} as trackers take it."""
    groups = settings_to_dict(settings).values()
    values = {name: value for group in groups for name, value in group.items() if value is not None}
    return {name: ", ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
