"""What a conversation is: a list of messages, checked once before anything is made of it.

Owns: which roles, keys and contents there are, in the form of the OpenAI API. Knows nothing of templates or tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "user", "assistant")
"""A role stands in the prompt as plain text beside special tokens, so it is never the client's own word."""


class ChatError(ValueError):
    """Messages that cannot be said to the model, in one line."""


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The messages as {"role", "content"}, content as one string: text parts are joined by line breaks.

    A key whose value is None says nothing and is left out. Raises: ChatError, naming the message and the value.
    """
    if not messages:
        raise ChatError("messages is empty: send at least one")
    return [_checked(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _checked(message: Mapping[str, Any], where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ChatError(f"{where} must be an object with role and content, got {message!r:.40}")
    unknown = [str(key) for key, value in message.items() if key not in ("role", "content") and value is not None]
    if unknown:
        raise ChatError(f"{where} has {', '.join(unknown)}: only role and content are known")
    role = message.get("role")
    if role not in ROLES:
        raise ChatError(f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.40}")
    return {"role": role, "content": _text(message.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        try:
            content.encode()
        except UnicodeEncodeError as error:
            half = content[error.start]
            raise ChatError(f"{where} holds {half!r}, half of a character: send valid UTF-8") from None
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ChatError(f"{where} must be a string or a list of text parts, got {content!r:.40}")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else part
        if kind != "text" or set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise ChatError(f'{where}[{number}] must be {{"type": "text", "text": ...}}, got {part!r:.60}')
        texts.append(_text(part["text"], f"{where}[{number}].text"))
    return "\n".join(texts)
