"""The sizes of a Whisper model, with openai/whisper's names."""

from dataclasses import asdict, dataclass

from whisper_npu.runtime.model_folder.json_files import Size


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a Whisper model (`ModelDimensions` of openai/whisper's model.py)."""

    n_mels: Size
    n_audio_ctx: Size
    n_audio_state: Size
    n_audio_head: Size
    n_audio_layer: Size
    n_vocab: Size
    n_text_ctx: Size
    n_text_state: Size
    n_text_head: Size
    n_text_layer: Size

    @property
    def n_frames(self) -> int:
        """Mel frames of one window: the encoder's second convolution has stride 2."""
        return 2 * self.n_audio_ctx

    @property
    def head_dim(self) -> int:
        """Width of one decoder attention head."""
        return self.n_text_state // self.n_text_head

    def contradiction(self) -> str | None:
        """The reason why no model can have these sizes, or None."""
        for width, heads, side in (
            (self.n_audio_state, self.n_audio_head, "encoder"),
            (self.n_text_state, self.n_text_head, "decoder"),
        ):
            if width % heads:
                return f"its {side} is {width} wide, which {heads} attention heads do not divide"
        if self.n_audio_state != self.n_text_state:
            return f"its encoder is {self.n_audio_state} wide, its decoder {self.n_text_state}"
        return None

    def as_dict(self) -> dict[str, int]:
        """The sizes by name, as the manifest stores them."""
        return asdict(self)
