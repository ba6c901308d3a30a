"""Whether a model takes languages and tasks: its tokens tell, as its size may be padded."""

# openai/whisper's English-only models have GPT-2's text tokens, the others one more (its
# `tokenizer.py`: the encodings "gpt2" and "multilingual"). The tokenizers of both list languages.
ENGLISH_EOT = 50_256


def is_multilingual(eot: int, n_languages: int, stated: object = None) -> bool:
    """Whether language and task tokens mean anything to a model.

    Args:
        eot: Its `<|endoftext|>`, which follows the text tokens.
        n_languages: Language tokens its tokenizer has.
        stated: `is_multilingual` of its generation configuration; None where it says nothing. It
            may only make a model English-only: fine-tunes take over other models' configurations.
    """
    return eot != ENGLISH_EOT and n_languages > 0 and stated is not False
