"""The reference engine: ground truth for grading, what a student's code replaces, the source of the book's figures.

Owns: padding and what it wastes (`padding/`), and who holds which block of KV memory (`memory/`). Knows nothing of
grading or of notebooks; it imports `labkit` for the contracts and never `autograder`.
Start with `memory/block_allocator.py`.
"""
