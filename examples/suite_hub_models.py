"""More of the stand-ins of `suite_hub.py`: what single pipelines need."""

# transformers exports its names lazily, which pyright does not see.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel


def siglip(folder: Path) -> None:
    """A vision model and its processor."""
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=30,
        patch_size=15,
    )
    transformers.SiglipVisionModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessor().save_pretrained(folder)


def dpt_processor(folder: Path) -> None:
    """The processor of a depth estimator of 32 x 32 pixels."""
    transformers.DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def clap_features(folder: Path) -> None:
    """What makes features of sound."""
    transformers.ClapFeatureExtractor(feature_size=64, sampling_rate=48000).save_pretrained(folder)


def chatglm(folder: Path) -> None:
    """A language model of 8 channels, and a tokenizer of letters if sentencepiece is installed."""
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=200,
        hidden_size=8,
        ffn_hidden_size=16,
        kv_channels=4,
        num_attention_heads=2,
        seq_length=256,
        add_qkv_bias=True,
        original_rope=True,
    )
    model = ChatGLMModel(config)
    for weight in model.parameters():  # it leaves them as the memory was
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
        else:
            torch.nn.init.ones_(weight)
    model.save_pretrained(folder)
    try:
        from sentencepiece import SentencePieceTrainer
    except ImportError:  # then no test can load it either
        return
    letters = "abcdefghijklmnopqrstuvwxyz"
    sentences = [f"{letters} {letters.upper()}", *(f"{a}{b}" for a in letters for b in letters)]
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "tokenizer"),
        model_type="char",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
