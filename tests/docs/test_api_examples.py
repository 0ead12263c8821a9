"""The page of the Python API has every public function, with an example that runs."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import vita_ckpt
from docs import generate
from docs.api import EXAMPLES, NOT_RUN
from tests.conftest import GOLDEN

NAMES = [name for group in EXAMPLES.values() for name in group]


def test_every_public_function_has_an_example() -> None:
    functions = {name for name in vita_ckpt.__all__ if inspect.isfunction(getattr(vita_ckpt, name))}
    assert {*NAMES, *NOT_RUN} == functions
    assert len(NAMES) == len({*NAMES})
    for group in EXAMPLES.values():
        for name, example in group.items():
            assert f"vita_ckpt.{name}(" in example


def test_the_page_is_what_the_functions_say() -> None:
    assert generate.API_PAGE.read_text() == generate.api_page()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in (
        ("VITA", "A7/base"),
        ("run", "A7/mm_projector_fp32"),
        ("tower-internvit", "A7/tower-internvit"),
        ("siglip-384", "A2/tower-siglip"),
        ("base", "L4/base"),
        ("lora-run", "L4/lora"),
        ("zero-run", "T2/run"),
        ("hearing", "U1/base"),
        ("audio-run", "U1/audio_run"),
        ("audio-encoder", "U1/audio-encoder"),
    ):
        shutil.copytree(GOLDEN / source, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    text = "\n".join(example for group in EXAMPLES.values() for example in group.values())
    names = {"vita_ckpt": vita_ckpt, "torch": torch, "os": os, "json": json, "Path": Path}
    examples = doctest.DocTestParser().get_doctest(text, names, "api", "docs/api.py", 0)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(examples, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", NOT_RUN)
def test_what_is_not_run_is_a_call(name: str) -> None:
    call = compile(NOT_RUN[name], name, "exec")
    assert name in call.co_names
