"""Groups of query heads that share a KV head.

Owns: which query head reads which KV head, for groups of every size. Knows nothing of how many are computed at once.
"""

from __future__ import annotations

import torch

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import Content, Draw, Kind
from autograder.judge.subject import Make

GROUP = "head_groups"
GROUPED = (cases.GROUPED, cases.HALF_GROUPED, cases.PAIRS, cases.SEVENS)


def numbered(kind: Kind, draw: Draw, lengths: list[int]) -> Content:
    """A content whose values tell their KV head: 1 for head 0, 2 for head 1, and so on."""
    content = draw.content(kind, lengths)
    for values in content.values:
        values.copy_(torch.arange(1.0, kind.kv_heads + 1).view(1, -1, 1).expand_as(values))
    return content


def test_neighbouring_query_heads_share_a_kv_head(make: Make, seed: int) -> None:
    """Query head h reads KV head h // (heads // kv_heads)."""
    draw = Draw(seed)
    for kind in GROUPED:
        content = numbered(kind, draw, [5, 9])
        out = draw.placed(content).run(make())
        want = torch.arange(kind.heads) // kind.group + 1.0
        view.check(out, want.double().view(1, -1, 1).expand(out.shape), "which KV head a query head reads")


def test_groups_of_four_are_right(make: Make, seed: int) -> None:
    """Four query heads for each of two KV heads."""
    draw = Draw(seed)
    content = draw.content(cases.GROUPED, [1, 3, 4, 18])
    view.check_call(make(), draw.placed(content), content, "groups of 4")


def test_groups_that_are_no_power_of_two_are_right(make: Make, seed: int) -> None:
    """Groups of 3 and of 7, in float16."""
    draw = Draw(seed)
    for kind, lengths in ((cases.HALF_GROUPED, [1, 16, 50]), (cases.SEVENS, [1, 3, 13])):
        content = draw.content(kind, lengths)
        view.check_call(make(), draw.placed(content), content, "a group that is no power of two")


def test_more_kv_heads_than_a_group_has_are_right(make: Make, seed: int) -> None:
    """Three KV heads with two query heads each: heads // kv_heads is not the number of KV heads."""
    draw = Draw(seed)
    content = draw.content(cases.PAIRS, [1, 16, 33])
    view.check_call(make(), draw.placed(content), content, "groups of 2 with 3 KV heads")


def test_one_kv_head_for_all_is_right(make: Make, seed: int) -> None:
    """Multi-query attention: eight query heads read the one KV head there is."""
    draw = Draw(seed)
    content = draw.content(cases.MULTI_QUERY, [1, 4, 5, 6, 21])
    view.check_call(make(), draw.placed(content), content, "one KV head for all query heads")


def test_a_kv_head_touches_its_own_group_only(make: Make, seed: int) -> None:
    """Changing one KV head changes the answers of its group and no others."""
    draw = Draw(seed)
    subject = make()
    content = draw.content(cases.GROUPED, [6, 9])
    call = draw.placed(content)
    before = call.run(subject).clone()
    call.value_cache[:, :, 1] += 1
    after = call.run(subject)
    changed = ~torch.isclose(before, after, rtol=0, atol=0.1).all(dim=-1)
    assert bool((~changed[:, :4]).all()), "an answer depends on a KV head of another group"
    assert bool(changed[:, 4:].all()), "an answer does not depend on its own KV head"


def test_heads_of_a_group_have_their_own_queries(make: Make, seed: int) -> None:
    """Query heads of one group share keys and values, not answers."""
    draw = Draw(seed)
    content = draw.content(cases.MULTI_QUERY, [12, 7])
    content.query[:, 3] = content.query[:, 0]
    out = draw.placed(content).run(make())
    view.check(out, content.answer(), "a group with two heads that ask the same")
    assert bool(torch.isclose(out[:, 3], out[:, 0], atol=1e-4).all()), "two equal queries of a group have two answers"


def test_deep_heads_in_a_group_are_right(make: Make, seed: int) -> None:
    """Heads of 128 in float32, four of them for one KV head."""
    draw = Draw(seed)
    content = draw.content(cases.DEEP, [1, 17, 40])
    view.check_call(make(), draw.placed(content), content, "heads of 128 in float32")
