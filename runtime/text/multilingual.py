"""Tells multilingual models from English-only models by their tokens: the size may be padded."""

# openai/whisper's English-only models have GPT-2's text tokens; the others have one more (its
# `tokenizer.py`: the encodings "gpt2" and "multilingual"). The tokenizers of both list languages.
ENGLISH_EOT = 50_256


def is_multilingual(eot: int, n_languages: int, stated: object = None) -> bool:
    """Whether a model knows language and task tokens.

    Args:
        eot: Its `<|endoftext|>`, which follows the text tokens.
        n_languages: Number of language tokens in its tokenizer.
        stated: `is_multilingual` of its generation configuration; None if it is not stated. It can
            only make a model English-only: fine-tunes copy configurations of other models.
    """
    return eot != ENGLISH_EOT and n_languages > 0 and stated is not False
