"""Every tensor's name is of one part."""

from __future__ import annotations

import pytest

from vita_ckpt.core.anatomy import parts


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.3.mlp.up_proj.weight", parts.LANGUAGE_MODEL),
        ("lm_head.weight", parts.LANGUAGE_MODEL),
        ("model.mm_projector.0.weight", parts.MM_PROJECTOR),
        ("base_model.model.model.mm_projector.0.weight", parts.MM_PROJECTOR),
        ("model.mm_projector_old.0.weight", parts.OTHER),
        ("model.vision_tower.vision_tower.embeddings.class_embedding", parts.VISION_TOWER),
        ("model.audio_encoder.adpter.project.weight", parts.AUDIO_ADAPTER),
        ("model.audio_encoder.encoder.x", parts.AUDIO_ENCODER),
        ("predictor_head.weight", parts.STATE_PREDICTOR),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", parts.LORA),
        ("model.normal", parts.OTHER),
        ("", parts.OTHER),
    ],
)
def test_parts(name: str, part: str) -> None:
    assert parts.part_of(name) == part
