"""Tiny vocabularies of the kinds that models come with, trained on the spot and written as their folders and files.

Four kinds, each with what is peculiar to it: where special tokens stand, how text is split, who adds BOS, and a chat
template of that kind's form. The same one is written as a Hugging Face folder and as GGUF metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set rules = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set rules = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nYear: ' + strftime_now('%Y') + '\\n' + rules + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role not in ('user', 'assistant') %}
        {{- raise_exception('Only the first message may be of the system') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
THINKING = """{%- set ns = namespace(last_question=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last_question = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set answer = message.content %}
        {%- if '</think>' in answer and loop.index0 < ns.last_question %}
            {%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
<|im_start|>assistant
{% generation %}{{ answer }}<|im_end|>{% endgeneration +%}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

TEXTS = [
    "The cat sat on the mat. It's 12 o'clock, isn't it? They're 3.14 and 2,718 apart!",
    "Déjà vu: naïve café, Übergröße, Ελληνικά, русский язык, 日本語のテキスト, 한국어, العربية, 🙂🙃👩‍🚀",
    "def f(x):\n    return x  +  1\n\n\t# user system assistant\r\n   end 100 200 300",
    "the there then that this these those user\n assistant\n system\n im start end header id eot",
] * 3
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _by_bytes(use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _by_bytes(False)])


@dataclass(frozen=True)
class Kind:
    """How one family's vocabulary is made. special: its tokens, in front of the others or behind them."""

    pre: str
    special: tuple[str, ...]
    special_first: bool
    pre_tokenizer: Callable[[], Any]
    template: str | None
    eos: str
    bos: str | None = None
    adds_bos: bool = False
    composed: bool = False
    whole_words: bool = False
    plain_added: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "smollm": Kind(
        pre="smollm",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        special_first=True,
        pre_tokenizer=lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _by_bytes(True)]),
        template=CHATML,
        bos="<|im_start|>",
        eos="<|im_end|>",
    ),
    "llama3": Kind(
        pre="llama-bpe",
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        special_first=False,
        pre_tokenizer=lambda: _split_by(LLAMA3_SPLIT),
        template=HEADERS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        adds_bos=True,
        whole_words=True,
    ),
    "qwen": Kind(
        pre="qwen2",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        special_first=False,
        pre_tokenizer=lambda: _split_by(LLAMA3_SPLIT.replace("{1,3}", "")),
        template=THINKING,
        eos="<|im_end|>",
        composed=True,
        # The last has characters that stand for no byte.
        plain_added=("<think>", "</think>", "<｜tool｜>"),
        config={"add_bos_token": False},
    ),
    "gpt2": Kind(
        pre="gpt-2",
        special=("<|endoftext|>",),
        special_first=False,
        pre_tokenizer=lambda: _by_bytes(True),
        template=None,
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
}


def train(kind: Kind, vocab_size: int = 420) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=kind.whole_words))
    if kind.composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = kind.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in kind.special]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special if kind.special_first else [],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.plain_added])
    if kind.adds_bos:
        bos = str(kind.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend


def write_folder(folder: Path, kind: Kind, backend: Tokenizer, **config: Any) -> Path:
    """A folder as models are published in. `config` changes tokenizer_config.json; None leaves a key out."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": kind.bos,
        "eos_token": kind.eos,
        "chat_template": kind.template,
        "clean_up_tokenization_spaces": False,
        **kind.config,
        **config,
    }
    write_json(folder / "tokenizer_config.json", {key: value for key, value in values.items() if value is not None})
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def gguf_metadata(kind: Kind, backend: Tokenizer) -> dict[str, Any]:
    """What a GGUF file of the same model says of its tokenizer."""
    tokens = [backend.id_to_token(token) for token in range(backend.get_vocab_size())]
    types = [3 if token in kind.special else 4 if token in kind.plain_added else 1 for token in tokens]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind.pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": backend.token_to_id(kind.eos),
    }
    if kind.bos is not None:
        metadata["tokenizer.ggml.bos_token_id"] = backend.token_to_id(kind.bos)
    if kind.template is not None:
        metadata["tokenizer.chat_template"] = kind.template
    return metadata
