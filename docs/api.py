"""An example of each public function, for the page of the Python API.

A test runs them, one after the other, in a directory where ``VITA`` is a checkpoint, ``run`` a
projector run, ``siglip-384`` a vision tower, ``base`` and ``lora-run`` a model and its LoRA run,
``zero-run`` what a training left, ``hearing`` a checkpoint with audio, ``audio-run`` the run of
its audio adapter and ``audio-encoder`` its encoder.
"""

from __future__ import annotations

from typing import Final

EXAMPLES: Final[dict[str, dict[str, str]]] = {
    "Look": {
        "open_checkpoint": """
>>> checkpoint = vita_ckpt.open_checkpoint("VITA")
>>> checkpoint.tensors["model.mm_projector.0.weight"].shape
(64, 128)
""",
        "inspect": """
>>> found = vita_ckpt.inspect("VITA")
>>> found.kind, found.parameters
('vita-checkpoint', 156544)
>>> found.config["mm_hidden_size"].agrees
True
""",
        "list_tensors": """
>>> [tensor["name"] for tensor in vita_ckpt.list_tensors("run", "*.weight")]
['model.mm_projector.0.weight', 'model.mm_projector.2.weight']
""",
        "module_tree": """
>>> [(module["name"], module["tensors"]) for module in vita_ckpt.module_tree("run", 2)]
[('model', 4), ('model.mm_projector', 4)]
""",
        "distributions": """
>>> vita_ckpt.distributions("run")["mm_projector"].nan
0
""",
        "explain": """
>>> explained = vita_ckpt.explain("VITA")
>>> [trace.loader for trace in explained.traces if trace.outcome == "complete"][:2]
['vita-1.5', 'vita-1.0']
""",
        "diff": """
>>> vita_ckpt.diff("VITA", "VITA").identical
True
""",
        "history": """
>>> vita_ckpt.history("VITA").operations
()
""",
        "get_w": """
>>> vita_ckpt.get_w({"model.mm_projector.0.weight": 1, "lm_head.weight": 2}, "mm_projector")
{'0.weight': 1}
""",
    },
    "Check": {
        "validate": """
>>> report = vita_ckpt.validate("VITA", values=True)
>>> report.count("error"), report.findings
(0, ())
""",
        "verify": """
>>> vita_ckpt.verify("VITA", device="cpu").findings
()
""",
    },
    "Plan a change": {
        "plan_merge_projector": """
>>> plan = vita_ckpt.plan_merge_projector("VITA", "run")
>>> sorted(edit.name for edit in plan.tensor_edits)[0]
'model.mm_projector.0.bias'
""",
        "summarize": """
>>> summary = vita_ckpt.summarize(plan)
>>> [file.name for file in summary.rewritten]
['model-00004-of-00004.safetensors']
""",
        "plan_merge_lora": """
>>> vita_ckpt.plan_merge_lora("base", "lora-run").operation
'merge-lora'
""",
        "plan_extract_projector": """
>>> sorted(vita_ckpt.plan_extract_projector("VITA").target().tensors)[0]
'model.mm_projector.0.bias'
""",
        "plan_swap_tower": """
>>> swap = vita_ckpt.plan_swap_tower("VITA", "siglip-384", projector="reinit", seed=1)
>>> swap.target().config["mm_hidden_size"]
48
""",
        "plan_extract_tower": """
>>> vita_ckpt.plan_extract_tower("VITA").operation
'extract-tower'
""",
        "plan_convert": """
>>> half = vita_ckpt.plan_convert("VITA", dtype="bf16").target()
>>> half.tensors["lm_head.weight"].dtype
'BF16'
""",
        "plan_resize_embeddings": """
>>> larger = vita_ckpt.plan_resize_embeddings("VITA", tokens=256).target()
>>> larger.tensors["lm_head.weight"].shape
(256, 64)
""",
        "plan_set": """
>>> vita_ckpt.plan_set("VITA", {"image_aspect_ratio": "pad"}).target().config["image_aspect_ratio"]
'pad'
""",
        "plan_consolidate": """
>>> len(vita_ckpt.plan_consolidate("zero-run", as_file=True).target().tensors)
66
""",
        "plan_merge_audio_adapter": """
>>> vita_ckpt.plan_merge_audio_adapter("hearing", "audio-run").operation
'merge-audio-adapter'
""",
        "plan_extract_audio_adapter": """
>>> vita_ckpt.plan_extract_audio_adapter("hearing").operation
'extract-audio-adapter'
""",
        "plan_swap_audio_encoder": """
>>> vita_ckpt.plan_swap_audio_encoder("hearing", "audio-encoder").operation
'swap-audio-encoder'
""",
        "plan_extract_audio_encoder": """
>>> vita_ckpt.plan_extract_audio_encoder("hearing").operation
'extract-audio-encoder'
""",
    },
    "Carry it out": {
        "check_plan": """
>>> vita_ckpt.check_plan(plan)
""",
        "apply": """
>>> merged = vita_ckpt.apply(plan, "merged")
>>> vita_ckpt.diff("VITA", merged, only=["model.mm_projector.*"]).breaches
()
""",
        "save_plan": """
>>> vita_ckpt.save_plan(plan, "merge.json")
""",
        "load_plan": """
>>> vita_ckpt.load_plan("merge.json").operation
'merge-projector'
""",
        "apply_in_place": """
>>> change = vita_ckpt.plan_set("merged", {"image_aspect_ratio": "pad"})
>>> changed = vita_ckpt.apply_in_place(change)
""",
        "undo": """
>>> vita_ckpt.undo("merged").operation
'set'
""",
        "recover": """
>>> vita_ckpt.recover("merged") is None
True
""",
        "drop_undo": """
>>> vita_ckpt.drop_undo("merged")
0
""",
        "clean": """
>>> vita_ckpt.clean("merged", dry_run=True)
[]
""",
        "consolidate": """
>>> file = vita_ckpt.consolidate("zero-run", "state.safetensors")
""",
    },
    "Run the model": {
        "load_model": """
>>> model = vita_ckpt.load_model("VITA", device="cpu")
>>> model.encode_images(torch.zeros(1, 3, 56, 56)).shape
torch.Size([1, 4, 64])
""",
        "join_ranks": """
>>> with vita_ckpt.join_ranks(os.environ) as ranks:  # in a process that torchrun started
...     print(ranks)
None
""",
    },
    "For training scripts": {
        "initialize_vision_modules": """
>>> args = vita_ckpt.VisionModelArgs(
...     vision_tower=vita_ckpt.open_checkpoint("siglip-384"),
...     mm_vision_tower="towers/siglip-384",
...     tower_config=json.loads(Path("siglip-384/config.json").read_text()),
...     projector="reinit",
... )
>>> vita_ckpt.initialize_vision_modules(checkpoint, args).target().config["mm_hidden_size"]
48
""",
    },
}

# What no test of this page can run, for it uploads: the tests of the hub do.
NOT_RUN: Final = {
    "push": 'done = vita_ckpt.push("merged", "org/merged", private=True)',
    "push_plan": """plan = vita_ckpt.plan_merge_projector("hf://org/base", "run")
done = vita_ckpt.push_plan(plan, "org/merged")""",
}
