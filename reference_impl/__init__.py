"""The reference engine: ground truth for grading, the parts a student's code replaces, the source of the book's
figures.

Owns: memory (`memory/`) and, as the course grows, padding, scheduling, kernels, a model and the engine round them.
Knows nothing of grading or of notebooks; it imports `labkit` for the contracts and never `autograder`. Start with
`memory/block_allocator.py`.
"""
