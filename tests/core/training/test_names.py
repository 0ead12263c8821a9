"""Names without wrappers, and the names of an adapter."""

from __future__ import annotations

import pytest

from vita_ckpt.core.training.model_entry import model_entries, trained_names
from vita_ckpt.core.training.names import adapter_names, is_of_peft, without_wrappers
from vita_ckpt.errors import MalformedFileError, UsageError


@pytest.mark.parametrize(
    "name",
    [
        "module.model.norm.weight",
        "_orig_mod.model.norm.weight",
        "_orig_mod.module.model.norm.weight",
        "module._orig_mod.model.norm.weight",
        "model._checkpoint_wrapped_module.norm._orig_mod.weight",
        "_fsdp_wrapped_module.model._fsdp_wrapped_module.norm.weight",
        "model.norm.weight",
    ],
)
def test_wrappers_are_taken_out(name: str) -> None:
    assert without_wrappers({name: 1}, "file") == {"model.norm.weight": 1}


def test_a_module_of_the_model_keeps_its_name() -> None:
    names = {"module.a": 1, "head.module.b": 2}
    assert without_wrappers(names, "file") == names
    assert without_wrappers({"module.module.a": 1}, "file") == {"module.a": 1}


def test_an_averaged_model() -> None:
    averaged = {"n_averaged": 0, "module.a": 1, "module.b": 2}
    assert without_wrappers(averaged, "file") == {"a": 1, "b": 2}
    inside = {"n_averaged": 0, "module.module.a": 1}
    assert without_wrappers(inside, "file") == {"a": 1}


def test_what_cannot_be_unwrapped_is_refused() -> None:
    with pytest.raises(MalformedFileError, match="flattened-parameters"):
        without_wrappers({"_fsdp_wrapped_module._flat_param": 1}, "file")
    with pytest.raises(MalformedFileError, match="duplicate-tensor"):
        without_wrappers({"a._orig_mod.b": 1, "a.b": 2}, "file")


def test_names_of_an_adapter() -> None:
    front = "base_model.model.model.layers.0.q_proj"
    names = {
        f"{front}.lora_A.default.weight": f"{front}.lora_A.weight",
        f"{front}.lora_B.default.weight": f"{front}.lora_B.weight",
        f"{front}.lora_magnitude_vector.default.weight": f"{front}.lora_magnitude_vector",
        f"{front}.lora_magnitude_vector.default": f"{front}.lora_magnitude_vector",
        "base_model.model.emb.lora_embedding_A.default": "base_model.model.emb.lora_embedding_A",
        "base_model.model.head.modules_to_save.default.weight": "base_model.model.head.weight",
    }
    assert adapter_names(list(names), "file") == names
    assert adapter_names(["base_model.model.model.mm_projector.0.weight"], "file") == {}
    assert is_of_peft(list(names))
    assert not is_of_peft(["model.norm.weight"])


def test_two_adapters_are_refused() -> None:
    names = [f"base_model.model.x.lora_A.{adapter}.weight" for adapter in ("one", "two")]
    with pytest.raises(UsageError, match=r"several-adapters: file: .*got one, two"):
        adapter_names(names, "file")


def test_the_model_among_entries() -> None:
    paths = {
        "model.a.b": ("model", "a.b"),
        "optimizer.state.a.b.exp_avg": ("optimizer", "state", "a.b", "exp_avg"),
        "step": ("step",),
    }
    assert model_entries(paths) == {"model.a.b": "a.b"}
    assert trained_names(["a.b", "c"], [paths["optimizer.state.a.b.exp_avg"]]) == ("a.b",)
    below = {"app.model.a": ("app", "model", "a"), "app.optim.state.a": ("app", "optim", "a")}
    assert model_entries(below) == {"app.model.a": "a"}
    at_top = {"model.a": ("model.a",), "optimizer.a.step": ("optimizer", "a.step")}
    assert model_entries(at_top) == {"model.a": "model.a"}
    flat = [("optimizer", "state.model.a.exp_avg")]
    assert trained_names(["model.a", "b"], flat) == ("model.a",)
    assert model_entries({"optimizer.a": ("optimizer", "a")}) == {}
