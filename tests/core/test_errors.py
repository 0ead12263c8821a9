"""Errors are values: a copy with another subject leaves the original as it was."""

from __future__ import annotations

from vita_ckpt.errors import AdapterError


def test_with_subject_copies() -> None:
    error = AdapterError("empty-tensor", "a", expected="b", got="c", hint="d")
    copy = error.with_subject("file: a")
    assert (type(copy), str(copy)) == (AdapterError, "empty-tensor: file: a: expected b, got c (d)")
    assert str(error) == "empty-tensor: a: expected b, got c (d)"


def test_replaced_keeps_what_is_not_given() -> None:
    error = AdapterError("empty-tensor", "a", expected="b", got="c", hint="d")
    assert str(error.replaced(hint="e")) == "empty-tensor: a: expected b, got c (e)"
    assert str(error.replaced(expected="e")) == "empty-tensor: a: expected e, got c (d)"
