"""The tokenizer of a Hugging Face folder.

Owns: what `tokenizer.json` and the files beside it say: added tokens, BOS and EOS, the chat template. Knows nothing of
weights. The files overlap; what counts is what `transformers` goes by:

    tokenizer.json           the vocabulary, its merges, and where BOS is put (add_bos_token elsewhere says nothing)
    tokenizer_config.json    bos_token, eos_token, chat_template, further added tokens
    chat_template.jinja      the chat template, if it is there
    generation_config.json   eos_token_id: one or several; config.json where it has none
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from reference_impl.model.errors import ModelError
from reference_impl.model.hub_tokenizer import HubTokenizer
from reference_impl.model.safetensors_folder import read_json

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def from_folder(folder: Path) -> HubTokenizer:
    """The tokenizer in `folder`. Raises: ModelError, naming the file. Cost: reading the vocabulary, some 0.1 to 1 s."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path} is missing; other forms of vocabularies (such as tokenizer.model) are not read")
    read_json(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing more special.
        raise ModelError(f"{path} is no tokenizer: {' '.join(str(error).split())}") from None
    config = _optional_json(folder / "tokenizer_config.json")
    _add_tokens(backend, config, folder)
    named = {name: text for name in _NAMED if (text := _text_of(config.get(name))) is not None}
    ids = {name: _id_of(backend, text, folder) for name, text in named.items()}
    eos = {ids["eos_token"]} if "eos_token" in ids else set()
    eos |= _eos_of_model(folder)
    try:
        return HubTokenizer(
            backend,
            bos_token_id=ids.get("bos_token"),
            eos_token_ids=frozenset(eos),
            chat_template=_chat_template(folder, config),
            template_values=named,
        )
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text_of(token: Any) -> str | None:
    """A token is written as its text, or as an object that has it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _id_of(backend: tokenizers.Tokenizer, text: str, folder: Path) -> int:
    token = backend.token_to_id(text)
    if token is None:
        raise ModelError(f"{folder / 'tokenizer_config.json'} names the token {text!r}, which tokenizer.json has not")
    return token


def _add_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], folder: Path) -> None:
    """Tokens that only the configuration has, at the ids that it gives them."""
    listed = config.get("added_tokens_decoder") or {}
    for token, entry in sorted((int(token), entry) for token, entry in listed.items()):
        text = _text_of(entry) or ""
        added = tokenizers.AddedToken(
            text, special=bool(entry.get("special")), normalized=bool(entry.get("normalized"))
        )
        if backend.token_to_id(text) is None:
            backend.add_tokens([added])
        if backend.token_to_id(text) != token:
            where = folder / "tokenizer_config.json"
            raise ModelError(f"{where} gives {text!r} the id {token}, tokenizer.json {backend.token_to_id(text)}")


def _eos_of_model(folder: Path) -> set[int]:
    for name in ("generation_config.json", "config.json"):
        eos = _optional_json(folder / name).get("eos_token_id")
        if eos is not None:
            listed = eos if isinstance(eos, list) else [eos]
            if not all(isinstance(token, int) and token >= 0 for token in listed):
                raise ModelError(f"{folder / name}: eos_token_id must be one or several token ids, got {eos!r}")
            return set(listed)
    return set()


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several by name: the others are for tools and documents.
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None
