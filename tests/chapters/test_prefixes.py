"""The chapter "Prefix caching": its hits are the engine's, and what it says of each design holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from labkit.event_log import check_log
from labkit.figures import Figure, Table
from labkit.player import Player
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.memory import PrefixCache

CHAPTER = "prefixes"
ROOT = Path(__file__).resolve().parents[2]
QUIZZES = ("last", "tails", "mixed", "pressure", "tenants", "chat")


def found_by(cache: PrefixCache, prompts: Iterable[Iterable[int]], salts: Iterable[str] = ()) -> list[int]:
    """What `cache` finds of each prompt, one after the other."""
    found = []
    salts = [*salts] or [""] * 1_000
    for seq, (prompt, salt) in enumerate(zip(prompts, salts, strict=False)):
        tokens = list(prompt)
        found.append(cache.acquire(seq, tokens, salt))
        cache.commit(seq, len(tokens))
        cache.release(seq)
        cache.check_invariants()
    return found


@pytest.fixture(scope="module")
def quizzes(chapter: Any) -> dict[str, Quiz]:
    shown = [shown for shown in chapter.shown if isinstance(shown, Quiz)]
    return dict(zip(QUIZZES, shown, strict=True))


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_opening_holds_almost_every_request_hits_and_almost_no_token_is_found(
    chapter: Any, seen: dict[str, Any]
) -> None:
    rows = seen["trace"]["rows"]
    assert all(row["by_requests"] > 0.999 for row in rows)
    rates = [row["by_tokens"] for row in rows]
    assert rates == sorted(rates)
    assert rates[-1] <= seen["trace"]["unlimited"]["by_tokens"] < 0.4
    assert float(chapter.glued["gpu_rate"]) + float(chapter.glued["computed_gpu"]) == pytest.approx(100)
    assert float(chapter.glued["gpu_rate"]) < 10
    assert chapter.glued["gpu_gib"] == f"{1_000 * 512 * 128 / 2**20:.1f}"


def test_a_cache_without_limit_finds_what_a_count_of_the_prefixes_finds(seen: dict[str, Any]) -> None:
    source = workload("mooncake_conversation")
    if source.prefix_hashes is None:
        pytest.skip("the sample has no prefixes of its own")
    known: set[int] = set()
    found = 0
    for prefix, tokens in zip(source.prefix_hashes, source.prompt_tokens.tolist(), strict=True):
        usable = prefix[: (tokens - 1) // 512].tolist()
        found += next((place for place, block in enumerate(usable) if block not in known), len(usable))
        known.update(prefix[: tokens // 512].tolist())
    assert found * 512 == seen["trace"]["unlimited"]["tokens_found"]
    assert len(known) == seen["trace"]["distinct"]


def test_the_chain_on_the_page_finds_what_the_engine_finds(chapter: Any) -> None:
    names, prompts = chapter.names, ["abcdefgh", "abcdefghi", "abcdxfghi", "efgh", "abcdefgh"]
    cache: set[str] = set()
    on_the_page = [names["serve"](cache, list(prompt)) for prompt in prompts]
    assert on_the_page == found_by(PrefixCache(64, 4), ([ord(letter) for letter in prompt] for prompt in prompts))
    answer = (ROOT / "solutions" / "chapters" / "prefixes.md").read_text(encoding="utf-8")
    asked = re.search(r"\*\*Trace\.\*\*.*?\n", chapter.source)
    assert asked is not None
    assert re.findall(r"`([a-z]+)`", asked[0]) == prompts
    table = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", answer, re.MULTILINE)
    assert table == [(p, str(len(p)), str(found)) for p, found in zip(prompts, on_the_page, strict=True)]


def test_the_salt_of_the_chain_changes_every_key(chapter: Any) -> None:
    chain, words = chapter.names["chain"], list("abcdefghijkl")
    assert not set(chain(words)) & set(chain(words, salt="x"))
    assert chain(words, salt="x") == chain(words, salt="x")


def test_the_short_key_is_wrong_and_the_engine_with_one_is_not(chapter: Any, seen: dict[str, Any]) -> None:
    assert int(chapter.glued["wrong"]) > 5
    weak = PrefixCache(200, 1, hash_block=lambda parent, tokens, salt: b"x")
    assert found_by(weak, ([number, 1_000 + number] for number in range(100))) == [0] * 100
    assert seen["trace"]["agree"]["blocks_found"] > 1_000


def test_the_story_says_what_the_prose_says_of_it(chapter: Any, seen: dict[str, Any]) -> None:
    events = seen["story"]["events"]
    check_log(events)
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Player))
    assert len(figure) == len({event["call"] for event in events})
    at = {event["call"]: event for event in events}
    idle = at[int(chapter.glued["idle_step"])]["state"]
    assert idle["num_free"] == idle["num_blocks"]
    assert idle["num_idle"] == 2
    before = at[int(chapter.glued["shares_step"]) - 1]["state"]
    assert not before["tables"], "the hit revives blocks that nobody holds"
    evicted = next(event for event in events if event["kind"] == "evict")
    assert " and ".join(map(str, evicted["blocks"])) == chapter.glued["lost"]
    head = next(event for event in events if event["kind"] == "share" and event["seq"] == 6)["blocks"]
    assert not set(head) & set(evicted["blocks"]), "the head was spared"


def test_a_guess_shows_under_one_salt_only(seen: dict[str, Any]) -> None:
    block, template = seen["probe"]["block_size"], seen["probe"]["template"]
    assert seen["probe"]["shared"] == {"right": template + block, "wrong": template}
    assert seen["probe"]["salted"] == {"right": 0, "wrong": 0}
    assert seen["probe"]["own"]["right"] == template + block


def test_the_trap_counts_what_preempted_requests_find_of_themselves(chapter: Any, seen: dict[str, Any]) -> None:
    trap = seen["trap"]
    assert trap["hits"]["first"] == 0
    assert trap["tokens"]["first"] == trap["requests"] * trap["prompt"]
    assert trap["preemptions"] > 50
    assert trap["naive"] > 0.1
    firsts = {request for request, _, _ in chapter.names["log"]}
    assert len(firsts) == 4 < len(chapter.names["log"])


def test_mixed_lengths_save_the_share_that_full_blocks_of_the_system_prompt_have(
    chapter: Any, seen: dict[str, Any], quizzes: dict[str, Quiz]
) -> None:
    mixed = seen["mixed"]
    lengths = workload("azure_conv").prompt_tokens[: mixed["requests"]]
    total = int(lengths.sum()) + mixed["requests"] * mixed["system"]
    for row in mixed["rows"]:
        size = row["block_size"]
        assert row["found"] == (mixed["requests"] - 1) * (mixed["system"] // size * size)
        assert row["tokens"] == total
    by_class = [row["by_tokens"] for row in mixed["classes"].values()]
    assert by_class == sorted(by_class, reverse=True)
    assert sum(row["count"] for row in mixed["classes"].values()) == mixed["requests"]
    share = (mixed["requests"] - 1) * 992 / total
    assert quizzes["mixed"].answer == f"{100 * share:.0f} %"


def test_under_pressure_the_shared_beginning_is_there_once(seen: dict[str, Any], quizzes: dict[str, Quiz]) -> None:
    press, at_once = seen["pressure"], seen["pressure"]["at_once"]
    blocks = press["capacity"] // 16
    whole = press["system"] + press["user"] + press["output"]
    assert at_once["reserve"] == press["capacity"] // 4_096
    assert at_once["blocks"] == at_once["salted"] == blocks // -(-whole // 16)
    assert at_once["cache"] == (blocks - 125) // -(-(whole - 2_000) // 16)
    assert at_once["large"] == (press["capacity"] // 1_024 - 1) // 2
    assert quizzes["pressure"].answer.startswith("Blocks of 16 with a prefix cache that all")
    assert quizzes["pressure"].options[quizzes["pressure"].answer].startswith(f"{at_once['cache']} at once")


def test_only_the_quota_holds_against_each_load(seen: dict[str, Any], quizzes: dict[str, Quiz]) -> None:
    rows = seen["tenants"]["rows"]
    alone = rows["alone"]["none"]
    assert set(rows["quota"].values()) == {alone}
    assert rows["slru"]["once"] == alone > rows["slru"]["twice"]
    assert rows["double"]["twice"] == alone > rows["double"]["more"]
    assert max(rows["lru"].values()) < alone
    assert quizzes["tenants"].answer.startswith("A quota")


def test_the_clock_belongs_into_the_newest_message(
    chapter: Any, seen: dict[str, Any], quizzes: dict[str, Quiz]
) -> None:
    rows = seen["chat"]["rows"]
    most = {place: rows[place]["65536"]["most"] for place in rows}
    assert most["never"] < most["message"] < 100 < most["behind"] < most["front"]
    assert most["behind"] == most["front"] - 992
    assert rows["message"]["32768"]["most"] > 10 * most["message"]
    assert rows["message"]["32768"]["median"] < 100
    assert quizzes["chat"].answer.startswith("Put it into the newest message")


def test_the_keys_of_the_first_questions_are_right(quizzes: dict[str, Quiz]) -> None:
    twice = found_by(PrefixCache(16, 16), [range(64), range(64)])
    assert quizzes["last"].answer == str(twice[1])
    assert quizzes["tails"].answer == "4 and 0"
    assert all(4 <= len(quiz.options) <= 5 for quiz in quizzes.values())


def test_every_figure_describes_itself_and_names_the_source_of_its_data(chapter: Any, seen: dict[str, Any]) -> None:
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Figure))
    assert len(figure.description.split()) >= 20
    assert len(figure.table.rows) == len(seen["trace"]["rows"])
    assert figure.note == seen["trace"]["source"]
    assert workload("mooncake_conversation").description in figure.note
    assert ("invented" in figure.note) == (not workload("mooncake_conversation").is_real)
    assert all(table.caption for table in chapter.shown if isinstance(table, Table))


def test_the_answers_to_the_exercises_hold(chapter: Any) -> None:
    names = dict(chapter.names)
    chapter.run_answer(3, names)
    tree: dict[Any, Any] = {}
    cache: set[str] = set()
    for prompt in ("abcdefgh", "abcdefghi", "abcdxfghi", "efgh", "abcdefgh"):
        blocks = [tuple(prompt[end - 4 : end]) for end in range(4, len(prompt) + 1, 4)]
        found = names["match"](tree, blocks[: (len(prompt) - 1) // 4])
        names["insert"](tree, blocks)
        assert 4 * found == names["serve"](cache, list(prompt))
    answer = (ROOT / "solutions" / "chapters" / "prefixes.md").read_text(encoding="utf-8")
    assert f"992 tokens of 128 KiB, {chapter.glued['salt_one']} MiB" in answer
    assert f"50 copies, {chapter.glued['salt_all']} GiB" in answer
    assert f"{100 * 50 * 992 * 128 * 1024 / 2**34:.0f} % of 16 GiB" in answer


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "math", "numpy", "matplotlib", "hashlib"}
