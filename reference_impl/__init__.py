"""The reference engine: ground truth for grading, what a student's code replaces, the source of the book's figures.

Owns: padding and what it wastes (`padding/`), who holds which block of KV memory (`memory/`), which request computes
how much in the next step (`sched/`), a clock around both (`sim/`), attention over blocks by its definition
(`attention/`), and how fast all of it is (`bench/`). Knows nothing of grading or of notebooks; it imports `labkit` for
the contracts and never `autograder`.
Start with `README.md`, which follows one request through the files.
"""
