"""Who runs which job when: the local runner and its journal.

Owns: one judge process a job, the slots on this machine's cores or GPUs (`slots.py`, `devices.py`), retries of our own
faults, and the memory of what is finished (`journal.py`). Knows nothing of tests or points. Start with `local.py`.
"""
