"""Refuse adapters whose values are bad."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint, refs_of, uncast
from vita_ckpt.core.dtype import is_real
from vita_ckpt.core.plan import (
    AddTensor,
    Plan,
    ReplaceTensor,
)
from vita_ckpt.core.relocation import Relocation
from vita_ckpt.errors import AdapterError

ALLOW: Final = "allow_bad_values"  # the key of a request
# The rules by which an adapter is refused.
_BAD_VALUES: Final = ("value-nan", "value-inf", "value-all-zero")


def with_values_checked(plan: Plan, adapter: Checkpoint | None, allow: bool) -> Plan:
    """Return a plan that says whether bad values are allowed of an adapter that has some.

    Raises AdapterError ``bad-adapter-values`` for what is taken of the adapter, unless allowed.
    """
    if adapter is not None and not allow and not is_remote(adapter.root):
        _refuse_bad_values(plan, adapter)
    return replace(plan, request={**(plan.request or {}), ALLOW: allow})


def check_fetched(plan: Plan, here: Plan) -> None:
    """Raise AdapterError ``bad-adapter-values`` for an adapter on the hub, unless allowed.

    ``here`` is ``plan`` with what it takes of the adapter on the disk.
    """
    if plan.record is None or (plan.request or {}).get(ALLOW) is not False:
        return
    for role, donor in zip(plan.record.roles, plan.donors, strict=True):
        if role == "adapter" and is_remote(donor.root):
            pairs = zip(plan.tensor_edits, here.tensor_edits, strict=True)
            moved = {
                far: near
                for there, local in pairs
                for far, near in zip(refs_of(there.tensor), refs_of(local.tensor), strict=True)
            }
            _refuse_bad_values(here, Relocation(tensors=moved).checkpoint(donor))


def _refuse_bad_values(plan: Plan, adapter: Checkpoint) -> None:
    from vita_ckpt.api.validate import check_values  # noqa: PLC0415 - numpy

    made = (e.tensor for e in plan.edits if isinstance(e, AddTensor | ReplaceTensor))
    taken = {one for tensor in made for one in (uncast(tensor), *refs_of(tensor))}
    names = [name for name, tensor in adapter.stored.items() if tensor in taken]
    integers = [name for name in names if not is_real(adapter.tensors[name].dtype)]
    bad = [f for f in check_values(adapter, names) if f.rule in _BAD_VALUES]
    if integers or bad:
        name = integers[0] if integers else bad[0].subject
        message = f"{adapter.tensors[name].dtype}" if integers else bad[0].message
        raise AdapterError(
            "bad-adapter-values",
            f"{adapter.root}: {name}",
            expected="finite real numbers, not all of them zero",
            got=message.partition(", got ")[2] or message,
            hint="take the adapter of an earlier step; --allow-bad-values takes this one",
        )
