"""KV memory in the terminal: a log played, or an engine watched while it works.

Owns: what a state of the log says of each block (`state.py`), its picture (`letters.py`, `grid.py`, `view.py`), a log
with time and keys (`replay.py`, `keys.py`, `command.py`), and the picture beside a running engine (`live.py`,
`lines.py`). Knows nothing of engines: it reads event logs (`labkit.event_log`) and imports no torch. Start with
`view.py`.
"""
