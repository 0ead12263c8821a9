"""Tokenizers and chat templates are programs: they run in a process with limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.builder import write_checkpoint, write_tokenizer
from vita_ckpt import InputError
from vita_ckpt.model import tokenizer, tokenizer_process
from vita_ckpt.model.tokenizer import TokenizerProcess


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tokenizer(write_checkpoint(tmp_path / "c"), 32)


def encode(root: Path, process: TokenizerProcess) -> Any:
    return process.encode(str(root), str(root), "w3 <image> w4")


@contextmanager
def refused(root: Path, code: str, *words: str, **limits: Any) -> Iterator[None]:
    """Building and encoding is one error, about the checkpoint, and the process is gone."""
    yield
    with TokenizerProcess(**limits) as process:
        with pytest.raises(InputError) as raised:
            encode(root, process)
        pid = process._process.pid
    assert raised.value.code == code
    assert raised.value.subject == str(root)
    assert all(word in str(raised.value) for word in words), raised.value
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_ids_and_text(root: Path) -> None:
    with TokenizerProcess() as process:
        assert encode(root, process).pieces == [[3], [4]]
        assert process.decode([3, 4]) == "w3 w4"
        assert process.decode([]) == ""


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 8000000000 }}",
        "{{ [0] * 4000000000 }}",
    ],
)
def test_memory_of_a_template(root: Path, template: str) -> None:
    with refused(root, "tokenizer-over-limit", "4 GiB", "rendering the chat template"):
        write_tokenizer(root, 32, chat_template=template)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_template_without_end(root: Path, name: str) -> None:
    if name == "chat_template.jinja" and find_spec("transformers.modeling_rope_utils") is None:
        pytest.skip("transformers 4.41 does not read it")
    words = ("more than 3 s of CPU time", "rendering the chat template")
    with refused(root, "tokenizer-over-limit", *words, cpu_seconds=3):
        write_tokenizer(root, 32, chat_template=LOOPS)
        if name != "tokenizer_config.json":
            write_tokenizer(root, 32)
            (root / name).write_text(LOOPS)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_process_that_does_not_answer(root: Path, stopped: bool) -> None:
    with TokenizerProcess(seconds=1 if stopped else 0) as process:
        if stopped:
            os.kill(process._process.pid, signal.SIGSTOP)
        with pytest.raises(InputError, match=r"tokenizer-over-limit.*more than . s while starting"):
            encode(root, process)


def test_normalizers_that_multiply(root: Path) -> None:
    path = root / "tokenizer.json"
    content = json.loads(path.read_text())
    replace = {"type": "Replace", "pattern": {"String": "w"}, "content": "ww"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 40}
    path.write_text(json.dumps(content))
    with (
        TokenizerProcess(cpu_seconds=3) as process,
        pytest.raises(InputError, match="while encoding the prompt") as raised,
    ):
        encode(root, process)
    assert raised.value.code in ("tokenizer-crashed", "tokenizer-over-limit")


def test_an_answer_that_is_too_long() -> None:
    class Wordy:
        eos_token_id = None

        def __call__(self, text: str, add_special_tokens: bool) -> Any:
            return SimpleNamespace(input_ids=[1] * (tokenizer_process.MOST_TOKENS + 1))

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "w" * (tokenizer_process.MOST_TEXT + 1)

    with pytest.raises(tokenizer_process._Refused, match="tokenizer-over-limit"):
        tokenizer_process._encode(Wordy(), "w3", [])
    with pytest.raises(tokenizer_process._Refused, match="tokenizer-over-limit"):
        tokenizer_process._decode(Wordy(), [1])


def test_a_process_that_is_killed(root: Path) -> None:
    with TokenizerProcess() as process:
        encode(root, process)
        os.kill(process._process.pid, signal.SIGSEGV)
        with pytest.raises(InputError, match=r"tokenizer-crashed.*SIGSEGV"):
            process.decode([1])
        with pytest.raises(InputError, match=r"tokenizer-crashed.*SIGSEGV"):
            process.decode([1])


@pytest.mark.parametrize(
    "answer",
    [
        "x",
        "[]",
        "{}",
        '{"pieces": [], "eos": 1}',
        '{"pieces": [[1]], "eos": 1}',
        '{"pieces": [[1], ["2"]]}',
        '{"pieces": [[1], [-200]]}',
        '{"pieces": [[true], [1]]}',
        '{"error": "x", "said": "y"}',
        '{"error": ["x"]}',
        "[" * 10_000,
        '{"pieces": [[1], [' + "1" * 5000 + "]]}",
        "1" * (tokenizer._LONGEST_ANSWER + 1),
    ],
    ids=range(13),
)
def test_answers_that_make_no_sense(
    root: Path, answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text(answer + "\n")
    program = f"import sys; sys.stdin.readline(); print(open({str(tmp_path / 'answer')!r}).read())"
    monkeypatch.setattr(tokenizer, "_PROGRAM", program)
    with refused(root, "tokenizer-crashed"):
        pass


def test_the_environment_is_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No module of the working directory is imported, and no token is in the environment."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    for name in ("json", "transformers", "tokenizers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    with TokenizerProcess() as process:
        assert encode(root, process).pieces == [[3], [4]]
        if sys.platform == "linux":
            environment = Path(f"/proc/{process._process.pid}/environ").read_bytes()
            assert b"hf_secret" not in environment
            limits = Path(f"/proc/{process._process.pid}/limits").read_text()
            assert str(tokenizer_process.MOST_MEMORY) in limits
            maps = Path(f"/proc/{process._process.pid}/maps").read_text()
            assert "libtorch" not in maps


PARENT = """
import sys, time
from vita_ckpt.model.tokenizer import TokenizerProcess
with TokenizerProcess() as process:
    print(process._process.pid, flush=True)
    process.encode(sys.argv[1], sys.argv[1], "w3")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_ends_with_its_parent(root: Path, number: signal.Signals) -> None:
    write_tokenizer(root, 32, chat_template=LOOPS)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(1)
        parent.send_signal(number)
        parent.wait(20)
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)
