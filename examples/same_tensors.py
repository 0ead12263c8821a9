"""Whether two weight files hold the same tensors: names, dtypes, shapes and every byte."""

from __future__ import annotations

import sys
from pathlib import Path

from vita_ckpt import TensorRef, open_checkpoint


def content(path: str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a file whose tensors are contiguous."""
    return {
        name: (ref.dtype, ref.shape, read(ref)) for name, ref in open_checkpoint(path).refs.items()
    }


def read(ref: TensorRef) -> bytes:
    """The bytes that a reference points to."""
    with Path(ref.source.path).open("rb") as file:
        file.seek(ref.offset)
        return file.read(ref.nbytes)


if __name__ == "__main__":
    one, other = map(content, sys.argv[1:])
    if one != other:
        sys.exit("different")
    print(f"{len(one)} tensors, {sum(len(data) for _, _, data in one.values())} bytes: all equal")
