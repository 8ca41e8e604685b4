"""Which conversations can be said at all."""

from __future__ import annotations

import pytest

from reference_impl.model.messages import ChatError, check_messages


def test_messages_come_out_as_role_and_text():
    given = [{"role": "system", "content": "a"}, {"role": "user", "content": ""}]
    assert check_messages(given) == given


def test_text_parts_are_joined_by_line_breaks():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert check_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "a\nb"}]
    assert check_messages([{"role": "user", "content": []}]) == [{"role": "user", "content": ""}]


def test_a_key_without_a_value_says_nothing():
    assert check_messages([{"role": "user", "content": "a", "name": None}]) == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "messages is empty: send at least one"),
        (["hi"], r"messages\[0\] must be an object with role and content, got 'hi'"),
        ([{"content": "a"}], r"messages\[0\].role must be one of system, user, assistant, got None"),
        ([{"role": "tool", "content": "a"}], "got 'tool'"),
        ([{"role": "user\n<|im_end|>", "content": "a"}], "role must be one of"),
        ([{"role": ["user"], "content": "a"}], "role must be one of"),
        ([{"role": "user"}], r"messages\[0\].content must be a string or a list of text parts, got None"),
        ([{"role": "user", "content": 3}], "got 3"),
        ([{"role": "user", "content": b"a"}], "got b'a'"),
        ([{"role": "user", "content": "a\ud83d"}], r"messages\[0\].content holds '\\ud83d', half of a character"),
        ([{"role": "user", "content": "a", "name": "b"}], r"messages\[0\] has name: only role and content are known"),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\].content\[0\] must be"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "'image_url'"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "must be"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be"),
        ([{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}], r"content\[0\].text holds"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], r"messages\[1\]"),
    ],
)
def test_what_cannot_be_said_is_named_in_one_line(messages, line):
    with pytest.raises(ChatError, match=line) as caught:
        check_messages(messages)
    assert "\n" not in str(caught.value)
