"""The sizes of a Whisper model, under the names openai/whisper gives them."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a Whisper model (`ModelDimensions` of openai/whisper's model.py)."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    @property
    def n_frames(self) -> int:
        """Mel frames of one window: the encoder's second convolution has stride 2."""
        return 2 * self.n_audio_ctx

    @property
    def head_dim(self) -> int:
        """Width of one decoder attention head."""
        return self.n_text_state // self.n_text_head

    def as_dict(self) -> dict[str, int]:
        """The sizes by name, as the manifest stores them."""
        return asdict(self)
