"""Errors are values: a copy with another subject leaves the original as it was."""

from __future__ import annotations

import time

from vita_ckpt.errors import AdapterError, printable, redacted


def test_with_subject_copies() -> None:
    error = AdapterError("empty-tensor", "a", expected="b", got="c", hint="d")
    copy = error.with_subject("file: a")
    assert (type(copy), str(copy)) == (AdapterError, "empty-tensor: file: a: expected b, got c (d)")
    assert str(error) == "empty-tensor: a: expected b, got c (d)"


def test_replaced_keeps_what_is_not_given() -> None:
    error = AdapterError("empty-tensor", "a", expected="b", got="c", hint="d")
    assert str(error.replaced(hint="e")) == "empty-tensor: a: expected b, got c (e)"
    assert str(error.replaced(expected="e")) == "empty-tensor: a: expected e, got c (d)"


def test_credentials_are_left_out() -> None:
    for said, shown in (
        ("https://user:pass@host/a b", "https://…@host/a b"),
        ("https:/user:pass@host/a", "https:/…@host/a"),
        ("from //user:pass@host/a", "from //…@host/a"),
        ("a//b@c and hf://org/name@main", "a//b@c and hf://org/name@main"),
        ("https://host/a?X-Amz-Signature=b&c=d e", "https://host/a?… e"),
        ("(https://host/a?b) https://host/a)b?c?d", "(https://host/a?…) https://host/a)b?…"),
        ("url: /a?b=c&X-Amz-Signature=d (timed out)", "url: /a?b=c&X-Amz-Signature=… (timed out)"),
        ("runs/hf_AbCdEfGhIjKlMnOpQrSt/x", "runs/hf_…/x"),
        ("Authorization: Bearer abcdefgh12345", "Authorization: Bearer …"),
        ("hf://org/name@main/below", "hf://org/name@main/below"),
        ("model.layers.0.self_attn?", "model.layers.0.self_attn?"),
        ("self_hf_attention_layers", "self_hf_attention_layers"),
    ):
        error = AdapterError("empty-tensor", said, expected=said, got=said, hint=said)
        want = f"empty-tensor: {shown}: expected {shown}, got {shown} ({shown})"
        assert str(error) == want


def test_long_texts_are_redacted_quickly() -> None:
    """In a time that grows with the text, not with its square: that would be tens of seconds."""
    for part in ("a://", "a.a", "a:/", "?a&", "hf_", "x:/@", "//a:", " //a", "a:/?b)"):
        before = time.process_time()
        redacted(part * 50_000 + "?")
        assert time.process_time() - before < 1


def test_no_log_command() -> None:
    for text in ("##[error]x", "a ###[b", "##VSO[task]"):
        assert "##[" not in printable(text)
        assert "##VSO[" not in printable(text)


def test_what_shows_nothing_is_spelt_out() -> None:
    hidden = "\U000e0041\u2060\u180e\u00ad\ufff9\u206f\u202e\n\x9b\ud800"
    spelt = r"\U000e0041\u2060\u180e\xad\ufff9\u206f\u202e\x0a\x9b\ud800"
    assert printable(f"a{hidden}é漢🙂") == f"a{spelt}é漢🙂"
