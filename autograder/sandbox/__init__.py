"""The box round the worker: namespaces, mounts, an empty network, limits.

Owns: the tiers this machine reaches (`tiers.py`), every cap in one place (`limits.py`), how a worker is started in a
tier (`launch.py`) and the proof that each deny fires (`doctor.py`). Knows nothing of labs or points. Start with
`limits.py`.
"""
