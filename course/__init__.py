"""A course on this project: exercises cut out of it, and checks that tell whether they were done."""
