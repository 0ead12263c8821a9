"""Tests of vita_ckpt.api."""
