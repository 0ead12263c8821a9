"""Addresses on the hub."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.address import Address, address_meant, looks_like_repository, parse_address
from vita_ckpt.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://VITA-MLLM/VITA-1.5", Address("VITA-MLLM/VITA-1.5")),
        ("hf://org/name/", Address("org/name")),
        ("hf://models/org/name", Address("org/name")),
        ("hf://org/name@main", Address("org/name", "main")),
        ("hf://org/name@v1.0/sub/folder", Address("org/name", "v1.0", "sub/folder")),
        ("hf://org/name/sub@1/file.bin", Address("org/name", "", "sub@1/file.bin")),
        (f"hf://org/name@{COMMIT}/x", Address("org/name", COMMIT, "x")),
        ("hf://org/name@refs/pr/12/sub", Address("org/name", "refs/pr/12", "sub")),
        ("hf://org/name@refs/pr/12", Address("org/name", "refs/pr/12")),
        ("hf://org/name@feature%2Fx/sub", Address("org/name", "feature/x", "sub")),
    ],
)
def test_what_an_address_says(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert address.is_pinned == (COMMIT in text)


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://org",
        "hf://org/",
        "hf:///name",
        "hf://org/name@",
        "hf://org/na me",
        "hf://datasets/org/name",
        "hf://org/name/../other",
        "hf://org/name/a//b",
        "hf://org/name/a\0b",
        "hf://org/name/\ud800",
        "hf://org/name/" + "a/" * 2048 + "a",
        "hf://org/name@.",
        "hf://org/name@../file",
        "hf://org/name@%2e%2E",
        "hf://org/-name",
        "hf://../name",
        "hf://org/name@main\\x/../y",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_address(text)
    assert error.value.code == "invalid-hub-address"
    assert str(error.value).isprintable()


@given(st.text(max_size=40))
def test_every_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = parse_address(f"hf://{text}")
    except UsageError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["org/name", "VITA-MLLM/VITA-1.5", "a/b", "Qwen/Qwen2.5-7B"])
def test_what_could_be_a_repository(text: str) -> None:
    assert looks_like_repository(text)


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "./name",
        "../name",
        "/name",
        "~/name",
        "a/b/c",
        "a/b/",
        "run/mm_projector.bin",
        "run/model.safetensors",
        "run/config.json",
        "-a/b",
        "a/.b",
        "a b/c",
        "",
    ],
)
def test_what_can_only_be_a_path(text: str) -> None:
    assert not looks_like_repository(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://huggingface.co/org/name", "hf://org/name"),
        ("https://huggingface.co/org/name/", "hf://org/name"),
        ("http://hf.co/org/name", "hf://org/name"),
        ("huggingface.co/org/name", "hf://org/name"),
        ("https://huggingface.co/org/name?library=transformers#files", "hf://org/name"),
        ("https://huggingface.co/org/name/tree/main", "hf://org/name@main"),
        ("https://huggingface.co/org/name/tree/main/a/b/", "hf://org/name@main/a/b"),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1/a", "hf://org/name@refs/pr/1/a"),
        ("https://huggingface.co/org/name/tree/a%2Fb", "hf://org/name@a%2Fb"),
        ("https://hf.co/org/name/blob/v1.0/m.bin", "hf://org/name@v1.0/m.bin"),
        ("https://hf.co/org/name/blob/main/a%20b.bin", "hf://org/name@main/a b.bin"),
        (
            f"https://huggingface.co/org/name/resolve/{COMMIT}/m.bin?download=true",
            f"hf://org/name@{COMMIT}/m.bin",
        ),
        ("https://mirror.example/hf/org/name/tree/main", "hf://org/name@main"),
        ("org/name@v1.0", "hf://org/name@v1.0"),
        ("org/name@v1.0/sub/", "hf://org/name@v1.0/sub"),
        ("org/name@refs/pr/1", "hf://org/name@refs/pr/1"),
        ("org/name/", "hf://org/name"),
        ("org/name", "hf://org/name"),
        ("hf:org/name", "hf://org/name"),
        ("hf:/org/name@main", "hf://org/name@main"),
    ],
)
def test_what_somebody_means_by_it(text: str, address: str) -> None:
    meant = address_meant(text, "https://mirror.example/hf/")
    assert str(meant) == address
    assert meant == parse_address(address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "name/",
        "org/name/sub",
        "org/name/sub/",
        "/org/name@main",
        "./org/name/",
        "../name@main",
        "user@host/name",
        "org/name@",
        "org/name@main/../other",
        "run/model.safetensors/",
        "run/step@1.bin",
        "https://huggingface.co/",
        "https://huggingface.co/name",
        "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/datasets/name",
        "https://huggingface.co/org/name/discussions/1",
        "https://huggingface.co/org/name/blob/main/../x",
        "https://huggingface.co.example/org/name",
        "https://example/huggingface.co/org/name",
        "https://mirror.example/org/name/tree/main",
    ],
)
def test_what_nobody_can_tell_the_meaning_of(text: str) -> None:
    assert address_meant(text, "https://mirror.example/hf/") is None


@given(st.text(max_size=40))
@pytest.mark.parametrize("before", ["", "https://huggingface.co/", "org/name/tree/", "org/name@"])
def test_what_is_meant_is_an_address(before: str, text: str) -> None:
    meant = address_meant(before + text)
    if meant is not None:
        assert parse_address(str(meant)) == meant
