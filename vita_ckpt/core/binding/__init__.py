"""Bind a checkpoint's tensors to what a loader builds: strictly, by whole names.

The names and shapes follow from the config, the tower's own config and the tables of the anatomy
(UPSTREAM §1, §3, §4, §8). Nothing is recognised by guess here: a prefix too many makes a tensor
unexpected, and the one it should be missing.
"""
