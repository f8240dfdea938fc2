import namesake  # noqa: F401 - before anything imports `datasets`
