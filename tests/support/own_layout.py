"""The layout of this project's own export, for folders without real graphs."""

from whisper_npu.runtime.model_folder.layout import (
    DECODER,
    DECODER_WITH_PAST,
    ENCODER,
    TOKENIZER,
    Layout,
)


def own_layout(folder):
    """The layout of this project's export; no file need exist."""
    return Layout(
        encoder=folder / ENCODER,
        decoder=folder / DECODER,
        with_past=folder / DECODER_WITH_PAST,
        alignment=None,
        tokenizer=folder / TOKENIZER,
    )
