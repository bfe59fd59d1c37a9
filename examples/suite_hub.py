"""Tiny stand-ins for the repositories of the hub that diffusers' tests load, made on the spot.

They are written the way the hub's cache keeps them, so that with HF_HOME set to the folder and
HF_HUB_OFFLINE=1 every `from_pretrained("owner/name")` finds them. Tokenizers spell words out in
letters or bytes; encoders have random weights of a fixed seed. So outputs that a test compares
with figures of the real repositories differ, with us and without us alike.
"""

# transformers exports its tokenizers lazily, which pyright does not see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from suite_hub_models import chatglm, clap_features, dpt_processor, siglip

_REVISION = "0" * 40
_T5: dict[str, Any] = {
    "vocab_size": 1103,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 5,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "initializer_factor": 0.002,
    "decoder_start_token_id": 0,
}
_SMALL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.text is defined %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(home: Path) -> None:
    """Make the stand-ins, unless they are there.

    Args:
        home: what HF_HOME will be.
    """
    if home.exists():
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}-"))
    try:
        for name, make in REPOSITORIES.items():
            folder = work / "hub" / f"models--{name.replace('/', '--')}"
            snapshot = folder / "snapshots" / _REVISION
            snapshot.mkdir(parents=True)
            (folder / "refs").mkdir()
            (folder / "refs" / "main").write_text(_REVISION)
            torch.manual_seed(0)
            make(snapshot)
            if name in _MODEL_TYPES:
                (snapshot / "config.json").write_text(
                    json.dumps({"model_type": _MODEL_TYPES[name]})
                )
        work.replace(home)  # all at once: a build that was stopped leaves nothing half made
    finally:
        shutil.rmtree(work, ignore_errors=True)


def byte_letters() -> list[str]:
    """The 256 letters by which byte-level tokenizers spell bytes: printable ones are themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(0x100 + i) for i in range(len(others))]


def numbered(tokens: list[str]) -> dict[str, int]:
    """Ids in order, each token once."""
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


ASCII = [chr(i) for i in range(ord("!"), ord("~") + 1)]
BYTE_TOKENS = [f"<0x{i:02X}>" for i in range(256)]


def clip_tokenizer(folder: Path) -> None:
    """Clip tokenizer."""
    letters = byte_letters()
    vocab = numbered(["<|startoftext|>", "!", *letters, *(c + "</w>" for c in letters)])
    vocab["<|endoftext|>"] = 999  # the last id of the tests' encoders: they pool at the largest id
    end = "<|endoftext|>"
    transformers.CLIPTokenizer(
        vocab=vocab,
        merges=[],
        unk_token=end,
        bos_token="<|startoftext|>",
        eos_token=end,
        pad_token=end,
        model_max_length=77,
    ).save_pretrained(folder)


def clip_encoder(folder: Path) -> None:
    """Clip encoder."""
    config = transformers.CLIPTextConfig(
        **{**_SMALL, "max_position_embeddings": 77},
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=2,
    )
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)


def t5_tokenizer(folder: Path) -> None:
    """T5 tokenizer."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    # A whole word is likelier than its letters, so that a sentence stays short.
    words = [("\u2581a", -2.5), ("\u2581of", -2.5), ("\u2581the", -2.5)]
    transformers.T5TokenizerFast(
        vocab=[*special, *words, *((c, -3.0) for c in ASCII)], extra_ids=100, model_max_length=512
    ).save_pretrained(folder)


def t5_repository(folder: Path) -> None:
    """T5 repository."""
    t5_tokenizer(folder)
    transformers.T5EncoderModel(transformers.T5Config(**_T5)).save_pretrained(folder)


def umt5(folder: Path) -> None:
    """Umt5."""
    t5_tokenizer(folder)
    transformers.UMT5EncoderModel(transformers.UMT5Config(**_T5)).save_pretrained(folder)


def qwen2_tokenizer(folder: Path) -> None:
    """Qwen2 tokenizer."""
    _qwen2_tokenizer(folder, byte_letters())


def _qwen2_tokenizer(folder: Path, letters: list[str]) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    marks = [f"{what}_{end}" for what in ("object_ref", "box", "quad") for end in ("start", "end")]
    marks += ["vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
    special += [*(f"<|{mark}|>" for mark in marks), "<think>", "</think>"]
    tokenizer = transformers.Qwen2TokenizerFast(
        vocab=numbered(letters),
        merges=[],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        model_max_length=8192,
    )
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(folder)


def qwen2_vl(folder: Path) -> None:
    """Qwen2 vl; its special tokens have the numbers that tests' encoders know them by."""
    letters = byte_letters()
    _qwen2_tokenizer(folder, [*letters, *(f"<{i}>" for i in range(len(letters), 151643))])
    transformers.Qwen2VLImageProcessor(min_pixels=56**2, max_pixels=16 * 28**2).save_pretrained(
        folder
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    words = {"vocab_size": 152064, "hidden_size": 16, "intermediate_size": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    sight = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 14}
    config = transformers.Qwen2VLConfig(
        text_config={**words, **heads, "rope_parameters": rope}, vision_config=sight
    )
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)


def gemma_letters(folder: Path) -> None:
    """Gemma tokenizer of a few letters: encoders of eight words are given its words."""
    vocab = numbered(["<pad>", "<eos>", "<bos>", "<unk>", *"aeno"])
    transformers.GemmaTokenizerFast(vocab=vocab, merges=[], model_max_length=512).save_pretrained(
        folder
    )


def gemma_tokenizer(folder: Path) -> None:
    """Gemma tokenizer."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    vocab = numbered([*special, *BYTE_TOKENS, "\u2581", *ASCII])
    transformers.GemmaTokenizerFast(vocab=vocab, merges=[], model_max_length=512).save_pretrained(
        folder
    )


def gemma3(folder: Path) -> None:
    """Gemma3."""
    gemma_tokenizer(folder)
    sight = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1}
    config = transformers.Gemma3Config(
        text_config={**_SMALL, "num_key_value_heads": 2, "head_dim": 8},
        vision_config={**sight, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)


def bert(folder: Path) -> None:
    """Bert."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = numbered([*special, *ASCII, *(f"##{c}" for c in ASCII)])
    transformers.BertTokenizerFast(vocab=vocab, model_max_length=512).save_pretrained(folder)
    config = transformers.BertConfig(**{**_SMALL, "vocab_size": 1124, "num_hidden_layers": 5})
    transformers.BertModel(config).save_pretrained(folder)


def roberta_tokenizer(folder: Path) -> None:
    """Roberta tokenizer."""
    vocab = numbered(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *byte_letters()])
    transformers.RobertaTokenizerFast(vocab=vocab, merges=[], model_max_length=77).save_pretrained(
        folder
    )


def llama_tokenizer(folder: Path) -> None:
    """Llama tokenizer."""
    vocab = numbered(["<unk>", "<s>", "</s>", "<pad>", *BYTE_TOKENS, "\u2581", *ASCII])
    tokenizer = transformers.LlamaTokenizerFast(
        vocab=vocab, merges=[], pad_token="<pad>", model_max_length=512
    )
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(folder)


def llama_model(folder: Path) -> None:
    """Llama model."""
    llama_tokenizer(folder)
    config = transformers.LlamaConfig(**{**_SMALL, "hidden_size": 16}, num_key_value_heads=4)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def hunyuan_video(folder: Path) -> None:
    """Hunyuan video."""
    llama_tokenizer(folder / "tokenizer")


def xlm_roberta_tokenizer(folder: Path) -> None:
    """Xlm roberta tokenizer."""
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocab = [*special, *((c, -3.0) for c in ASCII), ("<mask>", 0.0)]
    transformers.XLMRobertaTokenizerFast(vocab=vocab, model_max_length=512).save_pretrained(folder)


_TESTING = "hf-internal-testing"

#: What makes the files of each repository.
REPOSITORIES: dict[str, Callable[[Path], None]] = {
    f"{_TESTING}/tiny-random-clip": clip_tokenizer,
    f"{_TESTING}/tiny-sd3-text_encoder": clip_encoder,
    f"{_TESTING}/tiny-sd3-text_encoder-2": clip_encoder,
    f"{_TESTING}/tiny-random-t5": t5_repository,
    f"{_TESTING}/tiny-random-T5Model": t5_repository,
    f"{_TESTING}/tiny-random-T5ForConditionalGeneration": t5_repository,
    f"{_TESTING}/tiny-random-umt5": umt5,
    f"{_TESTING}/tiny-random-Qwen2VLForConditionalGeneration": qwen2_vl,
    "Qwen/Qwen3-Embedding-0.6B": qwen2_tokenizer,
    f"{_TESTING}/dummy-gemma": gemma_letters,
    f"{_TESTING}/tiny-gemma3": gemma3,
    f"{_TESTING}/tiny-random-BertModel": bert,
    f"{_TESTING}/tiny-random-roberta": roberta_tokenizer,
    f"{_TESTING}/tiny-random-ClapModel": clap_features,
    f"{_TESTING}/tiny-random-LlamaForCausalLM": llama_model,
    f"{_TESTING}/llama-tokenizer": llama_tokenizer,
    "THUDM/glm-4-9b-chat": llama_tokenizer,
    "finetrainers/dummy-hunyaunvideo": hunyuan_video,
    f"{_TESTING}/tiny-random-SiglipVisionModel": siglip,
    f"{_TESTING}/tiny-random-DPTForDepthEstimation": dpt_processor,
    f"{_TESTING}/tiny-random-chatglm3-6b": chatglm,
    "YiYiXu/tiny-random-mclip-base": xlm_roberta_tokenizer,
}

#: AutoTokenizer wants to know the kind of model even where there is no model.
_MODEL_TYPES = {
    "Qwen/Qwen3-Embedding-0.6B": "qwen2",
    f"{_TESTING}/dummy-gemma": "gemma",
    f"{_TESTING}/tiny-random-roberta": "roberta",
    f"{_TESTING}/llama-tokenizer": "llama",
    "THUDM/glm-4-9b-chat": "llama",
}
