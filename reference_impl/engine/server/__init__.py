"""The OpenAI API over an engine.

Owns: the fields of both calls and what each becomes (`call.py`, `completions.py`, `chat.py`), the answers and their
chunks (`answers.py`, `event_stream.py`), every error in OpenAI's form (`errors.py`), who is let in (`guard.py`), the
routes (`app.py`), sockets and signals (`http_server.py`, `command.py`) and the numbers for Prometheus (`metrics.py`).
Knows nothing of steps, blocks or tokens: it speaks to `AsyncEngine` alone. Start with `app.py`.
"""
