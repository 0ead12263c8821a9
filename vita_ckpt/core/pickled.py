"""Represent the objects of a pickle as inert values, and find the state dicts among them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, Final

from vita_ckpt.core.dataclass import dataclass

# Deeper than any trainer nests, and shallow enough that a path can be spelled out.
_DEEPEST: Final = 64
_LONGEST_PATH: Final = 200

# Of several state dicts, those of optimisers and those of averages are not what a loader wants.
_OF_TRAINING: Final = re.compile(
    r"optim|optimizer|optimizer_states?|base_optimizer_state|fp32_groups|lr_schedulers?|scheduler"
    r"|(grad_)?scaler|loss_scaler|rng_states?|random_states?|callbacks|exp_avg|exp_avg_sq|momentum",
    re.IGNORECASE,
)
_AVERAGED: Final = re.compile(
    r"(model_|state_dict_|module_)?(ema|swa|average|averaged|shadow|teacher|target)"
    r"(_model|_state_dict|_weights|_params|_state)?",
    re.IGNORECASE,
)
_PREFERRED: Final = ("state_dict", "model_state_dict", "model", "module", "weights")


@dataclass(frozen=True, slots=True)
class Global:
    """A class, function or constant that a pickle names: ``name`` is ``module.name``."""

    name: str


@dataclass(slots=True, eq=False, repr=False)
class Record:
    """An object of a class that is not looked up, or the result of a call that is not made.

    ``name`` is that of the class or function, ``args`` what it is given, ``state`` what the
    object's attributes are set from (as a rule a dict). ``items`` are the elements that are put
    into it afterwards: a list of what is appended or added, or a dict of what is set; None without
    any. Two records are equal only if they are the same, and so they can be keys.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] | dict[Any, Any] | None = None

    def __repr__(self) -> str:
        """Return the name only: what a record holds may hold it again, or be without end."""
        return f"<{self.name}>"

    @property
    def kind(self) -> str:
        """The last part of the name, which libraries keep when they move a class."""
        return self.name.rpartition(".")[2]

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute by what the state says, with slots or without."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        for state in states:
            if isinstance(state, dict) and attribute in state:
                return state[attribute]
        return default


@dataclass(frozen=True, slots=True)
class StateDict:
    """A dict with tensors by name, and its ``path`` in the file: keys joined by dots.

    The path of the object itself is ``.``.
    """

    path: str
    tensors: Mapping[str, Any]


def state_dicts(value: Any, is_tensor: Callable[[Any], bool]) -> list[StateDict]:
    """Return all dicts in ``value`` that hold tensors by name, first the one to read.

    Dicts, lists, tuples and records with items are looked through. A dict of weights precedes one
    of an average of them, and that one of an optimiser; then the largest comes first, then one
    with a name that is in use for weights, then the first of the file.
    """
    found = list(_dicts_with_tensors(value, is_tensor))
    return [one for _, one in sorted(found, key=lambda pair: _rank(*pair))]


def is_of_training(path: str) -> bool:
    """Return whether a path in a file leads to the state of an optimiser and the like."""
    return any(_OF_TRAINING.fullmatch(key) for key in path.split("."))


def without_data(record: Record, tensor: type[Any] | UnionType) -> tuple[str, str] | None:
    """Return what a record is whose tensor cannot be read, and what to do; None for no tensor."""
    if record.kind in _DISTRIBUTED:
        return (
            f"a {record.kind}: the part of one rank",
            "save the whole tensor: tensor.full_tensor(), called on every rank",
        )
    if record.name in _WITHOUT_DATA:
        return _WITHOUT_DATA[record.name]
    inner = record.args[0] if record.args else None
    if isinstance(inner, Record) and inner.name in _WITHOUT_DATA:  # of a subclass
        return _WITHOUT_DATA[inner.name]
    if any(isinstance(argument, tensor) for argument in record.args):
        return f"a tensor inside {record.name}", "save it as a plain torch.Tensor"
    return None


_DISTRIBUTED: Final = frozenset({"DTensor", "ShardedTensor"})
_SPARSE: Final = ("a sparse tensor", "save it whole: tensor.to_dense()")
_QUANTISED: Final = ("a quantised tensor", "save its values: tensor.dequantize()")
_META: Final = (
    "a tensor on the meta device: there is no data",
    "save the model where its weights are loaded",
)
_NESTED: Final = ("a nested tensor", "save its parts: tensor.unbind()")
_ELSEWHERE: Final = ("a tensor of another kind of device", "save it from the CPU: tensor.cpu()")
_OTHER_DTYPE: Final = (
    "a tensor of a dtype that no weight file has, or a lazy conjugate or negative of one",
    "convert it before saving: tensor.to(torch.float32), resolve_conj() or resolve_neg()",
)
_SUBCLASS: Final = ("a subclass of torch.Tensor", "save it as a plain torch.Tensor")
_WITHOUT_DATA: Final[dict[str, tuple[str, str]]] = {
    "torch._utils._rebuild_sparse_tensor": _SPARSE,
    "torch._utils._rebuild_sparse_csr_tensor": _SPARSE,
    "torch._utils._rebuild_qtensor": _QUANTISED,
    "torch._utils._rebuild_meta_tensor_no_storage": _META,
    "torch._utils._rebuild_nested_tensor": _NESTED,
    "torch.nested._internal.nested_tensor.NestedTensor": _NESTED,
    "torch.nested._internal.nested_tensor._rebuild_njt": _NESTED,
    "torch._utils._rebuild_device_tensor_from_numpy": _ELSEWHERE,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _ELSEWHERE,
    "torch._utils._rebuild_xla_tensor": _ELSEWHERE,
    "torch._utils._rebuild_hpu_tensor": _ELSEWHERE,
    "torch._utils._rebuild_wrapper_subclass": _SUBCLASS,
    "torch._utils._rebuild_tensor": _OTHER_DTYPE,
    "torch._utils._rebuild_tensor_v2": _OTHER_DTYPE,
    "torch._utils._rebuild_tensor_v3": _OTHER_DTYPE,
}

# A path as its last key and the path before it, so that deep ones share their starts.
_Path = tuple["_Path", Any] | None


def _dicts_with_tensors(
    value: Any, is_tensor: Callable[[Any], bool]
) -> Iterator[tuple[int, StateDict]]:
    """Yield them level by level, with their numbers."""
    queue: deque[tuple[Any, _Path, int]] = deque([(value, None, 0)])
    seen = {id(value)}
    number = 0
    while queue:
        at, path, depth = queue.popleft()
        entries = at.items if isinstance(at, Record) else at
        if isinstance(entries, dict):
            tensors = {
                name: entry
                for name, entry in entries.items()
                if isinstance(name, str) and is_tensor(entry)
            }
            if tensors:
                yield number, StateDict(_spelled(path), tensors)
                number += 1
            inner: Iterator[tuple[Any, Any]] = iter(entries.items())
        elif isinstance(entries, list | tuple):
            inner = enumerate(entries)
        else:
            continue
        if depth >= _DEEPEST:
            continue
        for key, child in inner:
            if isinstance(child, dict | list | tuple | Record) and id(child) not in seen:
                seen.add(id(child))
                queue.append((child, (path, key), depth + 1))


def _spelled(path: _Path) -> str:
    keys: list[str] = []
    while path is not None:
        path, key = path
        is_plain = key is None or isinstance(key, str | int | float | Record)
        keys.append(str(key)[:_LONGEST_PATH] if is_plain else f"<{type(key).__name__}>")
    return ".".join(reversed(keys)) or "."


def _rank(number: int, found: StateDict) -> tuple[bool, bool, int, int, int]:
    keys = found.path.split(".")
    preferred = next((i for i, k in enumerate(_PREFERRED) if k == keys[-1]), len(_PREFERRED))
    return (
        is_of_training(found.path),
        any(_AVERAGED.fullmatch(key) for key in keys),
        -len(found.tensors),
        preferred,
        number,
    )
