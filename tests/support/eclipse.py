"""diffusers' PriorTransformer with random weights, and ECLIPSE's files of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.integrity import write_safetensors


def make_prior(dim: int, width: int) -> Any:
    """Return a PriorTransformer of three layers with two heads; its weights are large, so that errors are visible."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    model = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=width // 2, num_layers=3, embedding_dim=dim
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_eclipse(model: Any, folder: Path) -> Path:
    """Save it as ECLIPSE's authors did: without the time embedding, its position (78) and its slot."""
    model.save_pretrained(folder)
    state = {name: t.detach() for name, t in model.state_dict().items() if not name.startswith("time_embedding")}
    positions = state["positional_embedding"]
    state["positional_embedding"] = torch.cat([positions[:, :78], positions[:, 79:]], dim=1)
    write_safetensors({k: t.contiguous() for k, t in state.items()}, folder / "diffusion_pytorch_model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["additional_embeddings"] = 3
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if not k.startswith("time")}))
    return folder
