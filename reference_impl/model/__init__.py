"""A decoder-only transformer over paged memory, its weights, its tokens and how the next one is chosen.

Owns: what a model is made of (`config.py`), its arithmetic (`transformer.py`, `layer.py`; what lies between the
products behind `ops.py`, in torch or in Triton), where weights come from (`loader.py` and what it reads), text and
token ids (`tokenizer.py`, `chat.py`), and the choice of the next token (`sampling.py`, `sampler.py`; on a GPU
`device_sampler.py`). Knows nothing of requests, schedules or blocks: a batch comes as flat tokens with an
`AttentionMetadata`. Start with `transformer.py`.
"""
