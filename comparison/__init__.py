"""Variants of an experiment, trained over several seeds and put into one table."""
