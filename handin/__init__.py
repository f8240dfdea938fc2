"""What is handed in: checked, graded, packed."""

import namesake  # noqa: F401 - before anything imports `datasets`
