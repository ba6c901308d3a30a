"""Makes a tiny random Whisper with its own tokenizer: real structure, no download, exact runs.

Its weights are drawn so that greedy decoding gives varied tokens that depend on the audio and end
by themselves, as with a trained model. The default initialisation repeats one token for ever.
"""

import json
from pathlib import Path

import numpy as np

N_TEXT_CTX = 448
N_AUDIO_CTX = 1500
LANGUAGES = ("en", "zh", "de", "es", "fr")
MERGES = 64
ENGLISH_TEXT_TOKENS = 50_256  # GPT-2's
EOT_SCALE = 1.8
SEED = 1  # chosen so that decodes end by themselves or run to the limit


def byte_characters() -> list[str]:
    """GPT-2's printable characters for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def special_tokens() -> list[str]:
    control = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{language}|>" for language in LANGUAGES),
        *control,
        "<|nospeech|>",
        "<|notimestamps|>",
    ]


def build_tokenizer_json(*, english: bool = False) -> bytes:
    """A byte-level BPE: 256 bytes, some merges of two letters, Whisper's special tokens.

    Args:
        english: Make as many text tokens as English-only models have; most are unused.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = "etaoinsrhldc"
    merges = [(first, second) for first in f"Ġ{letters}" for second in letters][:MERGES]
    vocabulary = {character: index for index, character in enumerate(sorted(byte_characters()))}
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    while english and len(vocabulary) < ENGLISH_TEXT_TOKENS:
        vocabulary[f"unused {len(vocabulary)}"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in special_tokens()])
    timestamps = [f"<|{step * 0.02:.2f}|>" for step in range(N_AUDIO_CTX + 1)]
    tokenizer.add_tokens([AddedToken(t, special=False) for t in timestamps])
    return tokenizer.to_str().encode()


def build_model(tokenizer_json: bytes, seed: int = SEED, padding: int = 0):
    import torch
    from tokenizers import Tokenizer
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    eot = tokenizer.token_to_id("<|endoftext|>")
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size() + padding,
        num_mel_bins=80,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=N_AUDIO_CTX,
        max_target_positions=N_TEXT_CTX,
        decoder_start_token_id=eot + 1,
        bos_token_id=eot,
        eos_token_id=eot,
        pad_token_id=eot,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    config._attn_implementation = "eager"
    model = WhisperForConditionalGeneration(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = _scale(name)
            if scale is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * scale)
        embedding = model.model.decoder.embed_tokens.weight
        embedding[eot + len(special_tokens()) :] *= 0.5  # fewer timestamps than text
        embedding[eot] *= EOT_SCALE
    return model


def _scale(name: str) -> float | None:
    if "layer_norm" in name or name.endswith("bias"):
        return None
    if "encoder.embed_positions" in name:
        return None
    if "embed" in name:
        return 0.3
    if "q_proj" in name or "k_proj" in name:
        return 0.35
    return 0.25


def save_checkpoint(folder: Path, *, english: bool = False, padding: int = 0) -> Path:
    """Write the tiny Whisper as a Hugging Face folder.

    Args:
        folder: The folder to write.
        english: See `build_tokenizer_json`.
        padding: Number of embedding rows without a token.
    """
    tokenizer_json = build_tokenizer_json(english=english)
    build_model(tokenizer_json, padding=padding).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    # save_pretrained writes a minimal one; without it the export completes it from the tokenizer.
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def synthetic_speech(seed: int, seconds: float, rate: int = 16000) -> np.ndarray:
    """A buzz that glides and pulses, different for each seed; float32 `(n,)` in [-1, 1]."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 90 + 60 * random.random() + 40 * np.sin(2 * np.pi * random.random() * time)
    voice = np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / rate))
    pulse = np.clip(np.sin(2 * np.pi * (2 + 2 * random.random()) * time), 0, None)
    return (0.3 * voice * pulse + 0.02 * random.standard_normal(len(time))).astype(np.float32)
