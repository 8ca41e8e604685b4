"""Tokenizers of Hugging Face folders and of GGUF metadata, beside `transformers` on the same vocabulary."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers  # noqa: E402

from reference_impl.engine.detokenizer import Detokenizer  # noqa: E402
from reference_impl.model.errors import ModelError  # noqa: E402
from reference_impl.model.folder_tokenizer import from_folder  # noqa: E402
from reference_impl.model.gguf_tokenizer import SPLITTINGS, from_gguf  # noqa: E402
from reference_impl.model.tokenizer import TokenizerError  # noqa: E402
from tests.reference_impl.model.vocabularies import KINDS, gguf_metadata, train, write_folder, write_json  # noqa: E402


@pytest.fixture(scope="module", params=list(KINDS))
def model(request, tmp_path_factory):
    """One kind of vocabulary: ours from the folder and from GGUF, and transformers' from the folder."""
    kind = KINDS[request.param]
    backend = train(kind)
    folder = write_folder(tmp_path_factory.mktemp(request.param), kind, backend)
    return SimpleNamespace(
        kind=kind,
        ours=from_folder(folder),
        gguf=from_gguf(gguf_metadata(kind, backend), "tiny.gguf"),
        theirs=transformers.AutoTokenizer.from_pretrained(folder),
        special={backend.token_to_id(token) for token in kind.special},
    )


SPECIAL = sorted({token for kind in KINDS.values() for token in (*kind.special, *kind.plain_added)})
texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [*SPECIAL, " ", "   ", "\n", "\r\n\n", "123", "  4567 ", "don't", "I'LL", "e\u0301", "<|im_", "|>"]
        ),
        st.text("ab 1\n'.", max_size=8),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=120, deadline=None)
@given(texts)
def test_ids_are_those_of_transformers_with_special_tokens_and_without(model, text):
    assert model.ours.encode(text, special=True) == model.theirs(text).input_ids
    assert model.ours.encode(text) == model.theirs(text, split_special_tokens=True).input_ids


@settings(max_examples=120, deadline=None)
@given(texts)
def test_a_gguf_file_gives_the_ids_that_the_folder_gives(model, text):
    assert model.gguf.encode(text) == model.ours.encode(text)
    assert model.gguf.encode(text, special=True) == model.ours.encode(text, special=True)


@settings(max_examples=120, deadline=None)
@given(texts)
def test_plain_text_comes_back_and_holds_no_special_token(model, text):
    ids = model.ours.encode(text)
    if model.kind.adds_bos:
        assert ids.pop(0) == model.ours.bos_token_id
    assert model.special.isdisjoint(ids)
    expected = unicodedata.normalize("NFC", text) if model.kind.composed else text
    assert model.ours.decode(ids) == expected


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_ids_read_as_transformers_reads_them_at_once_or_token_by_token(model, data):
    ids = data.draw(st.lists(st.integers(0, model.ours.vocab_size + 5), max_size=20))
    assert model.ours.decode(ids) == model.theirs.decode(ids, skip_special_tokens=True)
    assert model.ours.decode(ids, skip_special=False) == model.theirs.decode(ids)
    detokenizer = Detokenizer(model.ours)
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == model.ours.decode(ids)


def test_what_a_tokenizer_says_of_itself_is_what_transformers_says(model):
    for tokenizer in (model.ours, model.gguf):
        assert tokenizer.vocab_size == len(model.theirs)
        assert tokenizer.bos_token_id == model.theirs.bos_token_id
        assert tokenizer.eos_token_ids == {model.theirs.eos_token_id}


def test_only_the_kind_that_adds_bos_has_it_in_an_empty_text(model):
    assert model.ours.encode("") == model.gguf.encode("") == ([model.ours.bos_token_id] if model.kind.adds_bos else [])


def test_special_and_unknown_tokens_stand_for_no_bytes(model):
    for token in (*model.special, model.ours.vocab_size, model.ours.vocab_size + 1_000):
        assert model.ours.token_bytes(token) == b""
    with pytest.raises(ValueError, match="token ids are at least 0, got -1"):
        model.ours.token_bytes(-1)


def test_half_of_a_character_is_refused(model):
    with pytest.raises(TokenizerError, match=r"holds '\\ud83d', half of a character"):
        model.ours.encode("a\ud83d")


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm():
    return train(KINDS["smollm"])


@pytest.fixture(scope="module")
def llama3():
    return train(KINDS["llama3"])


def test_the_ends_of_an_answer_are_the_tokenizers_and_those_for_generation(tmp_path, smollm):
    folder = write_folder(tmp_path, KINDS["smollm"], smollm)
    write_json(folder / "config.json", {"eos_token_id": 5})
    assert from_folder(folder).eos_token_ids == {2, 5}
    write_json(folder / "generation_config.json", {"eos_token_id": [0, 2]})
    assert from_folder(folder).eos_token_ids == {0, 2}


def test_a_token_that_ends_an_answer_is_not_forged_though_it_is_not_declared_special(tmp_path):
    kind = KINDS["gpt2"]
    backend = train(kind)
    backend.add_tokens([AddedToken("<|end|>", special=False, normalized=False)])
    ours = from_folder(write_folder(tmp_path, kind, backend, eos_token="<|end|>"))
    end = backend.token_to_id("<|end|>")
    assert ours.encode("a<|end|>", special=True)[-1] == end
    assert end not in ours.encode("a<|end|>")
    assert ours.decode(ours.encode("a<|end|>")) == "a<|end|>"
    assert ours.token_bytes(end) == b""


@pytest.mark.parametrize("flags", [{"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}])
def test_where_bos_is_put_is_said_by_the_vocabulary_alone(tmp_path, llama3, flags):
    folder = write_folder(tmp_path, KINDS["llama3"], llama3, **flags)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("", "ab", "<|eot_id|>"):
        assert from_folder(folder).encode(text, special=True) == theirs(text).input_ids


def test_tokens_that_only_the_configuration_has_are_added_at_their_ids(tmp_path, smollm):
    size = smollm.get_vocab_size()
    added = {
        str(size + number): {"content": text, "special": special, "normalized": False}
        for number, (text, special) in enumerate([("<tool>", False), ("<|eom|>", True)])
    }
    folder = write_folder(tmp_path, KINDS["smollm"], smollm, added_tokens_decoder=added)
    ours, theirs = from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.encode("x<tool><|eom|>", special=True) == theirs("x<tool><|eom|>").input_ids
    assert ours.encode("x<tool><|eom|>", special=True)[1:] == [size, size + 1]
    assert size + 1 not in ours.encode("<|eom|>")


def test_an_added_token_at_another_id_than_the_configuration_says_is_refused(tmp_path, smollm):
    folder = write_folder(tmp_path, KINDS["smollm"], smollm, added_tokens_decoder={"900": {"content": "<tool>"}})
    with pytest.raises(ModelError, match=r"gives '<tool>' the id 900, tokenizer\.json"):
        from_folder(folder)


def test_a_file_that_says_to_cut_or_to_pad_texts_is_not_obeyed(tmp_path, smollm):
    backend = Tokenizer.from_str(smollm.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    ours = from_folder(write_folder(tmp_path, KINDS["smollm"], backend))
    assert len(ours.encode("zqxj")) == 4
    assert len(ours.encode("zqxj" * 5)) == 20


def test_a_vocabulary_whose_merges_write_a_special_token_refuses_that_text(tmp_path):
    backend = Tokenizer(models.BPE({"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}, [("<", "s"), ("<s", ">")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = train(KINDS["gpt2"]).decoder
    backend.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    ours = from_folder(write_folder(tmp_path, KINDS["gpt2"], backend, bos_token="<s>", eos_token="<s>"))
    assert ours.encode("<s", special=False) == [3]
    with pytest.raises(TokenizerError, match="cannot write <s> as plain text"):
        ours.encode("<s>")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, r"tokenizer\.json is missing; other forms"),
        ("tokenizer.json", "{", r"tokenizer\.json is not JSON"),
        ("tokenizer.json", "{}", r"tokenizer\.json is no tokenizer"),
        ("tokenizer_config.json", "[]", "must hold an object"),
        (
            "tokenizer_config.json",
            '{"eos_token": "<nope>"}',
            r"names the token '<nope>', which tokenizer\.json has not",
        ),
        ("tokenizer_config.json", '{"chat_template": "{% for"}', "the chat template cannot be read"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id must be one or several token ids, got '2'"),
        ("generation_config.json", '{"eos_token_id": 99999}', "the vocabulary has no token 99999"),
    ],
)
def test_a_folder_that_cannot_be_used_says_which_file_and_why(tmp_path, smollm, name, content, message):
    folder = write_folder(tmp_path, KINDS["smollm"], smollm)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        from_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_is_not_of_bytes_is_refused_by_name(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    with pytest.raises(ModelError, match="the tokenizer's decoder is NoneType; only byte-level"):
        from_folder(write_folder(tmp_path, KINDS["gpt2"], backend))


# --- GGUF --------------------------------------------------------------------------------------------------------


def test_gguf_flags_overrule_what_the_family_does(llama3):
    metadata = gguf_metadata(KINDS["llama3"], llama3)
    bos, eos = (metadata[f"tokenizer.ggml.{end}_token_id"] for end in ("bos", "eos"))
    assert from_gguf({**metadata, "tokenizer.ggml.add_bos_token": False}, "tiny.gguf").encode("") == []
    assert from_gguf({**metadata, "tokenizer.ggml.add_eos_token": True}, "tiny.gguf").encode("") == [bos, eos]


def test_the_end_of_a_turn_ends_an_answer_too(smollm):
    metadata = gguf_metadata(KINDS["smollm"], smollm)
    assert from_gguf({**metadata, "tokenizer.ggml.eot_token_id": 0}, "tiny.gguf").eos_token_ids == {0, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama"}, r"tokenizer.ggml.model must be gpt2 .* got 'llama'"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre must be one of gpt-2, gpt2, smollm, .* got 'tekken'"),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "has 1 tokens twice"),
        ({"token_type": [1]}, "token_type has 1 entries for 420 tokens"),
        ({"token_type": "abc"}, "token_type must be an array of int"),
        ({"merges": ["zz yy"]}, "tokenizer.ggml.merges has 'zz yy', of which not all are tokens"),
        ({"merges": ["three of them"]}, "merges has 'three of them'"),
        ({"eos_token_id": 4_000}, "eos_token_id must be a token id, 0 to 419, got 4000"),
        ({"bos_token_id": None, "add_bos_token": True}, "bos_token_id is missing"),
        ({"add_bos_token": "yes"}, "add_bos_token must be true or false, got 'yes'"),
    ],
)
def test_metadata_that_cannot_be_used_name_the_key(smollm, change, message):
    metadata = gguf_metadata(KINDS["smollm"], smollm)
    changed = {**metadata, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}}
    with pytest.raises(ModelError, match=rf"^tiny\.gguf: .*{message}") as caught:
        from_gguf({key: value for key, value in changed.items() if value is not None}, "tiny.gguf")
    assert "\n" not in str(caught.value)


def test_a_word_that_no_merge_makes_is_a_token_only_where_the_family_says_so(llama3):
    metadata = {**gguf_metadata(KINDS["llama3"], llama3), "tokenizer.ggml.add_bos_token": False}
    merges = metadata["tokenizer.ggml.merges"]
    lost = next(merge for merge in reversed(merges) if merge.replace(" ", "").isascii() and len(merge) > 3)
    word = lost.replace(" ", "").replace("Ġ", " ")
    fewer = {**metadata, "tokenizer.ggml.merges": [merge for merge in merges if merge != lost]}
    assert len(from_gguf(fewer, "tiny.gguf").encode(word)) == 1
    assert len(from_gguf({**fewer, "tokenizer.ggml.pre": "gpt2"}, "tiny.gguf").encode(word)) > 1


def test_every_known_splitting_builds(smollm):
    metadata = gguf_metadata(KINDS["smollm"], smollm)
    for name in SPLITTINGS:
        ours = from_gguf({**metadata, "tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False}, "tiny.gguf")
        assert ours.decode(ours.encode("it's 12 o'clock")) == "it's 12 o'clock"


# --- the real one ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    loader = pytest.importorskip("reference_impl.model.loader")
    try:
        return loader.find_model("smollm2").tokenizer()
    except ModelError as error:
        pytest.skip(f"no SmolLM2 here: {error}")


def test_smollm2_splits_as_it_was_trained(real):
    # As other engines that read this file have it.
    assert real.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert real.encode("Café déjà vu.") == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    assert real.encode("  multiple   spaces") == [216, 2701, 256, 5600]
    assert real.vocab_size == 49_152
    assert real.eos_token_ids == {2}


@pytest.mark.long
def test_smollm2_is_as_transformers_reads_the_same_file(real):
    """But for spaces before digits: transformers reads `smollm` as GPT-2, whose split leaves digits together."""
    from reference_impl.model import smollm2

    path = smollm2.cached_file()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in Path(__file__).parent.glob("*.py"):
        plain = "".join(character for character in text.read_text() if not character.isdigit())
        assert real.encode(plain, special=True) == theirs(plain).input_ids
    messages = [{"role": "user", "content": "What is a page?"}, {"role": "assistant", "content": "A leaf."}]
    assert real.chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True).input_ids
