"""The command line: settings as flags, the run of a script, tables of figures. Knows nothing of models."""
