"""Small random decoders of the supported classes, saved in the diffusers format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

DIM = 12  # of the image embeddings


@pytest.fixture(scope="session")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="the extra 'generate' is not installed")


@pytest.fixture(scope="session")
def kandinsky(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a decoder like kandinsky-2-2-decoder: MoVQ with spatial norms, UNet with predicted variance, DDPM."""
    torch.manual_seed(0)
    movq = diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=5,
        norm_type="spatial",
        vq_embed_dim=4,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=4,
        attention_head_dim=4,
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=DIM,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=4,
    )
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", variance_type="learned_range")
    return _save(
        diffusers.KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq), tmp_path_factory, "kandinsky"
    )


@pytest.fixture(scope="session")
def karlo(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=4,
    )
    small = {
        "sample_size": 16,
        "in_channels": 6,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    }
    clip = _clip(tmp_path_factory, projected=True)
    pipeline = diffusers.UnCLIPImageVariationPipeline(
        decoder=unet,
        text_encoder=clip["text_encoder"],
        tokenizer=clip["tokenizer"],
        text_proj=UnCLIPTextProjModel(
            clip_embeddings_dim=DIM, time_embed_dim=32, cross_attention_dim=8, clip_extra_context_tokens=2
        ),
        feature_extractor=clip["feature_extractor"],
        image_encoder=clip["image_encoder"],
        super_res_first=diffusers.UNet2DModel(**small),
        super_res_last=diffusers.UNet2DModel(**small),
        decoder_scheduler=_unclip_scheduler(diffusers, "learned_range"),
        super_res_scheduler=_unclip_scheduler(diffusers, "fixed_small_log"),
    )
    folder = _save(pipeline, tmp_path_factory, "karlo")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_proj"][0] = "unclip"  # as in the folder on the Hub
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def stable_unclip(diffusers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    torch.manual_seed(0)
    clip = _clip(tmp_path_factory, projected=False)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * DIM,
        cross_attention_dim=DIM,
        use_linear_projection=True,
        norm_num_groups=4,
    )
    normaliser = StableUnCLIPImageNormalizer(embedding_dim=DIM)
    torch.nn.init.constant_(normaliser.mean, 0.5)
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=clip["feature_extractor"],
        image_encoder=clip["image_encoder"],
        image_normalizer=normaliser,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip["tokenizer"],
        text_encoder=clip["text_encoder"],
        unet=unet,
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1),
        vae=diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4),
    )
    return _save(pipeline, tmp_path_factory, "stable-unclip")


def _unclip_scheduler(diffusers: Any, variance: str) -> Any:
    from diffusers.schedulers import UnCLIPScheduler

    return UnCLIPScheduler(variance_type=variance, num_train_timesteps=1000)


def _clip(tmp_path_factory: pytest.TempPathFactory, *, projected: bool) -> dict[str, Any]:
    """Return a small CLIP: the other parts that the pipelines require."""
    import transformers

    words = tmp_path_factory.mktemp("tokenizer")
    vocabulary = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>"]
    (words / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": DIM, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = transformers.CLIPTextConfig(
        **sizes,
        vocab_size=len(vocabulary),
        projection_dim=DIM,
        bos_token_id=0,
        eos_token_id=1,
        max_position_embeddings=77,
    )
    vision = transformers.CLIPVisionConfig(**sizes, projection_dim=DIM, image_size=8, patch_size=4)
    encoder = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return {
        "tokenizer": transformers.CLIPTokenizer.from_pretrained(str(words), model_max_length=77),
        "text_encoder": encoder(text).eval(),
        "image_encoder": transformers.CLIPVisionModelWithProjection(vision).eval(),
        "feature_extractor": transformers.CLIPImageProcessorPil(size=8, crop_size=8)
        if hasattr(transformers, "CLIPImageProcessorPil")
        else transformers.CLIPImageProcessor(size=8, crop_size=8),
    }


def _save(pipeline: Any, tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    folder = tmp_path_factory.mktemp("decoders") / name
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    return folder
