"""From settings to a tuned model (assembly), the one training loop, and the folders that keep a run."""

import namesake  # noqa: F401 - before anything imports `datasets`
