"""A file of prompts, read and checked before anything is computed; and the answers, as lines of JSON.

Owns: the two formats. A `.jsonl` file has an object a line: "prompt" (text), or "messages" (a chat), and any sampling
parameter by its name, and "cache_salt". Any other file has a prompt a line. Knows nothing of engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from reference_impl.engine.generate import Ask, Reply
from reference_impl.model.sampling import SamplingParams
from reference_impl.model.tokenizer import Tokenizer

_WISHES = tuple(field.name for field in fields(SamplingParams))
_OTHERS = ("prompt", "messages", "cache_salt")


def read_asks(path: Path, tokenizer: Tokenizer, params: SamplingParams, *, chat: bool) -> list[Ask]:
    """The asks of a file; `params` holds where a line says nothing. chat: a prompt is one user message.

    Raises: ValueError, naming file and line, on what cannot be read or is no ask; OSError without the file.
    """
    try:
        # Not `splitlines`: it cuts at U+2028 and others too, which JSON allows inside a string.
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    asks = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _object(line) if path.suffix == ".jsonl" else {"prompt": line}
            asks.append(_ask(row, tokenizer, params, chat))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not asks:
        raise ValueError(f"{path}: no prompt in it")
    return asks


def ask_of_text(text: str, tokenizer: Tokenizer, params: SamplingParams, *, chat: bool) -> Ask:
    """One prompt. Raises: ValueError on an empty one."""
    return _ask({"prompt": text}, tokenizer, params, chat)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise ValueError(f"not an object, but {type(row).__name__}")
    return row


def _ask(row: Mapping[str, Any], tokenizer: Tokenizer, params: SamplingParams, chat: bool) -> Ask:
    if unknown := [name for name in row if name not in _WISHES + _OTHERS]:
        raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(_OTHERS + _WISHES)}")
    if ("prompt" in row) == ("messages" in row):
        raise ValueError("give either prompt or messages")
    salt = row.get("cache_salt", "")
    if not isinstance(salt, str):
        raise TypeError(f"cache_salt must be a string, got {salt!r}")
    wishes = {name: _wish(name, row[name]) for name in _WISHES if name in row}
    return Ask(_ids(row, tokenizer, chat), replace(params, **wishes), salt)


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), (int, float)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), (int, float)),
    "stop": (str, list),
    "stop_token_ids": (list,),
    "logit_bias": (dict,),
    "ignore_eos": (bool,),
}
"""Sampling parameter -> what JSON may have for it; integers where nothing is said."""


def _wish(name: str, value: Any) -> Any:
    """A sampling parameter as JSON has it, as the type that it is. Raises: TypeError naming it."""
    wanted = _KINDS.get(name, (int,))
    # For Python a truth value is an integer too.
    if type(value) not in wanted:
        raise TypeError(f"{name} must be {' or '.join(kind.__name__ for kind in wanted)}, got {value!r}")
    if name == "stop":
        return _all(str, name, [value] if type(value) is str else value)
    if name == "stop_token_ids":
        return _all(int, name, value)
    return _biases(value) if name == "logit_bias" else value


def _all(kind: type, name: str, values: list[Any]) -> tuple[Any, ...]:
    if wrong := [value for value in values if type(value) is not kind]:
        raise TypeError(f"{name} must hold {kind.__name__} only, got {wrong[0]!r}")
    return tuple(values)


def _biases(value: Mapping[str, Any]) -> dict[int, float]:
    """JSON has only strings for keys. Raises: ValueError naming what is no token id or no number."""
    biases = {}
    for token, bias in value.items():
        if not token.isdecimal() or not isinstance(bias, int | float):
            raise ValueError(f"logit_bias must be token ids with numbers, got {token!r}: {bias!r}")
        biases[int(token)] = float(bias)
    return biases


def _ids(row: Mapping[str, Any], tokenizer: Tokenizer, chat: bool) -> list[int]:
    if "messages" in row:
        return tokenizer.chat(row["messages"])
    text = row["prompt"]
    if not isinstance(text, str):
        raise TypeError(f"prompt must be a string, got {text!r}")
    if not text:
        raise ValueError("the prompt is empty")
    return tokenizer.chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text)


def reply_row(number: int, reply: Reply) -> dict[str, Any]:
    """One line of the answers: number of the ask from 0 on, and its answers, or why there are none."""
    if reply.refused:
        return {"index": number, "refused": reply.refused}
    assert reply.usage is not None, "a reply that was not refused is over"
    answers: list[dict[str, Any]] = []
    for told in reply.answers:
        assert told.finish is not None, "a reply is over when all of its answers are"
        row = {"text": told.text, "token_ids": told.token_ids, "finish_reason": told.finish.value}
        if told.tokens and told.tokens[0].logprob is not None:
            row["logprobs"] = [{"logprob": token.logprob, "top": list(token.top)} for token in told.tokens]
        answers.append(row)
    usage = {
        "prompt_tokens": reply.usage.prompt_tokens,
        "cached_tokens": reply.usage.cached_tokens,
        "completion_tokens": reply.usage.completion_tokens,
    }
    return {"index": number, "answers": answers, "usage": usage}
