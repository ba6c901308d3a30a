"""A recording that begins with minutes of repetitions is refused; one that has some is not."""

import pytest
from fake_backend import Say, sound

from whisper_npu.errors import GibberishError

OPTIONS = {"language": "en", "vad": False, "best_of": 1, "temperature": (0.0, 0.4, 0.8)}


@pytest.fixture
def loop(words):
    return Say(tuple(words(" no no") * 20)[:50])


@pytest.fixture
def chance(words):
    return Say(tuple(range(1, 200)), logit=0.1)


@pytest.fixture
def text(words):
    return Say(tuple(words(" something that was said")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "temperature"), [("loop", OPTIONS["temperature"]), ("chance", (0.0,))]
)
def test_a_recording_of_nothing_else_is_refused_early(make, request, kind, temperature):
    model = make(request.getfixturevalue(kind))
    options = {**OPTIONS, "without_timestamps": True, "temperature": temperature}
    with pytest.raises(GibberishError, match="nothing but repetitions"):
        model.transcribe(sound(290), **options).result()
    # Ten windows at three temperatures would be thirty.
    assert len(model.backend.asked) <= 18


@pytest.mark.slow
def test_one_text_is_enough_to_go_on_but_the_user_is_told(make, loop, text):
    model = make(text, loop)
    result = model.transcribe(
        sound(179), mode="sequential", without_timestamps=True, **OPTIONS
    ).result()
    assert result.text.startswith("something that was said")
    (warning,) = result.warnings
    assert " windows gave nothing but repetitions" in warning


def test_a_good_text_says_nothing_of_it(make, text):
    result = make(text).transcribe(sound(20), without_timestamps=True, **OPTIONS).result()
    assert result.warnings == ()


@pytest.mark.slow
def test_one_channel_of_several_is_not_refused(make, loop, tmp_path):
    """Music on one side of a call does not take the other side with it."""
    import numpy as np
    import soundfile

    path = tmp_path / "call.wav"
    soundfile.write(path, np.stack([sound(130), sound(130, seed=1)], axis=1), 16_000)
    options = {**OPTIONS, "without_timestamps": True, "channels": "split"}
    result = make(loop).transcribe(path, **options).result()
    assert {segment.channel for segment in result.segments} == {"left", "right"}
    assert any("nothing but repetitions" in warning for warning in result.warnings)
