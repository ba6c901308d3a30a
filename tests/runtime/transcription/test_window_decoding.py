"""How much of a window is encoded."""

from whisper_npu.runtime.transcription.window_decoding import frames_to_encode


def test_short_windows_are_encoded_with_silence_behind_them():
    choices = range(200, 3001, 200)
    assert frames_to_encode(100, choices, 384) == 400
    assert frames_to_encode(100, choices, 512) == 600
    assert frames_to_encode(100, choices, None) == 600  # not known: what harms no model
    assert frames_to_encode(1300, choices, 1280) == 1800
    assert frames_to_encode(2900, choices, 384) == 3000
    assert frames_to_encode(100, (3000,), 384) == 3000
