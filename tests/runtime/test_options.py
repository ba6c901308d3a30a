"""What may be written for an option, and the one form it is kept in."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import get_type_hints

import numpy as np
import pytest
from fake_backend import ENGLISH, Say, sound

from whisper_npu.errors import UsageError
from whisper_npu.runtime.options import (
    MODES,
    TASKS,
    TEMPERATURES,
    TranscribeKwargs,
    TranscribeOptions,
)

# Options that are kept in another form than they may be written in: text or a list as a tuple.
KEPT = {
    "languages": tuple[str, ...] | None,
    "temperature": Sequence[float],
    "initial_prompt": str | tuple[int, ...] | None,
    "prefix": str | tuple[int, ...] | None,
    "suppress_tokens": tuple[int, ...] | None,
}


class TestKeywords:
    def test_they_are_the_fields_of_the_dataclass(self):
        names = [field.name for field in fields(TranscribeOptions)]
        assert list(TranscribeKwargs.__annotations__) == names
        assert TranscribeKwargs.__required_keys__ == frozenset()

    def test_they_have_the_types_of_the_fields(self):
        written = get_type_hints(TranscribeKwargs)
        kept = get_type_hints(TranscribeOptions)
        assert kept == written | KEPT
        assert all(kept[name] != written[name] for name in KEPT)

    def test_options_of_options_are_the_same(self):
        options = TranscribeOptions(
            languages=["de", "en"],
            temperature=0.2,
            initial_prompt=[5, 6],
            suppress_tokens="-1,7",
            audio_track="2",
        )
        assert TranscribeOptions(**asdict(options)) == options

    def test_the_choices(self):
        for mode in MODES:
            assert TranscribeOptions(mode=mode).mode == mode
        for task in TASKS:
            assert TranscribeOptions(task=task).task == task

    def test_options_are_hashable(self):
        assert hash(TranscribeOptions(languages=["de"], temperature=[0.0], suppress_tokens=[5]))


class TestOneForm:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            (0, (0.0,)),
            (0.4, (0.4,)),
            (np.float32(0.5), (0.5,)),
            ([0, 0.5], (0.0, 0.5)),
            (np.arange(3) / 2, (0.0, 0.5, 1.0)),
            (TEMPERATURES, TEMPERATURES),
        ],
    )
    def test_temperature(self, given, kept):
        assert TranscribeOptions(temperature=given).temperature == kept

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            (None, None),
            ("-1", None),
            ([-1], None),
            ((-1, -1), None),
            ("", ()),
            ([], ()),
            ("-1, 50", (-1, 50)),
            ("7,8,", (7, 8)),
            (np.array([7, 8]), (7, 8)),
            ({7}, (7,)),
        ],
    )
    def test_suppressed_tokens(self, given, kept):
        assert TranscribeOptions(suppress_tokens=given).suppress_tokens == kept

    @pytest.mark.parametrize("name", ["initial_prompt", "prefix"])
    @pytest.mark.parametrize("given", [[5, 6], (5, 6), np.array([5, 6])])
    def test_prompts_of_tokens(self, name, given):
        assert getattr(TranscribeOptions(**{name: given}), name) == (5, 6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": "0"}, "temperature takes one or more numbers from 0 to 2"),
            ({"temperature": None}, "temperature takes one or more numbers"),
            ({"temperature": ["0"]}, "temperature takes one or more numbers"),
            ({"temperature": 3}, "temperature takes one or more numbers from 0 to 2"),
            ({"suppress_tokens": "a,b"}, "suppress_tokens is 'a,b'; give token ids, as a list or"),
            ({"suppress_tokens": 5}, "suppress_tokens is 5; give token ids"),
            ({"suppress_tokens": ["5"]}, r"suppress_tokens is \['5'\]; give token ids"),
            ({"initial_prompt": 5}, "initial_prompt is 5; give text or a list of token ids"),
            ({"initial_prompt": ["Kyiv"]}, "initial_prompt is .*; give text or a list of token"),
            ({"prefix": b"Kyiv"}, "prefix is b'Kyiv'; give text or a list of token ids"),
            ({"hotwords": ["Kyiv"]}, r"hotwords is \['Kyiv'\]; give text"),
            ({"language": 5}, "language is 5; give text"),
            ({"languages": "de"}, "languages takes a list"),
            ({"languages": [5]}, "languages takes a list"),
            ({"beam_size": "5"}, "beam_size is '5'; give a whole number"),
            ({"beam_size": 2.5}, r"beam_size is 2\.5; give a whole number"),
            ({"vad": "no"}, "vad is 'no'; give True or False"),
            ({"word_timestamps": "False"}, "word_timestamps is 'False'; give True or False"),
            ({"multilingual": None}, "multilingual is None; give True or False"),
            ({"elastic": 1}, "elastic is 1; give True or False"),
            ({"batch_size": None}, "batch_size is None; give a whole number"),
            ({"logprob_threshold": "-1"}, "logprob_threshold is '-1'; give a number"),
            ({"vad_threshold": None}, "vad_threshold is None; give a number"),
            ({"prepend_punctuations": None}, "prepend_punctuations is None; give text"),
        ],
    )
    def test_what_is_of_a_wrong_type_is_refused(self, options, message):
        with pytest.raises(UsageError, match=message):
            TranscribeOptions(**options)


class TestWithAModel:
    def test_a_prompt_of_tokens_comes_first(self, make, words):
        model = make(Say(tuple(words(" Hello."))))
        special = model.tokenizer.special
        prompt = words(" Kyiv.")
        _ = model.transcribe(sound(2), **ENGLISH, initial_prompt=prompt).text
        asked = model.backend.asked[0].tokens[0]
        assert asked[: len(prompt) + 2] == [special.sot_prev, *prompt, special.sot]

    def test_a_prefix_of_tokens_is_part_of_the_text(self, make, words):
        model = make(Say(tuple(words(" there."))))
        options = {**ENGLISH, "without_timestamps": True}
        stream = model.transcribe(sound(2), **options, prefix=words(" Hello"))
        assert stream.text == "Hello there."

    def test_a_number_is_one_temperature(self, make, words):
        model = make(Say(tuple(words(" Hello.")), logit=1.0))
        segments = model.transcribe(sound(2), **ENGLISH, temperature=0.6, best_of=1).segments
        tried = [retry.temperature for segment in segments for retry in segment.retries]
        assert {*tried, *(segment.temperature for segment in segments)} == {0.6}

    def test_suppressed_tokens_as_text(self, make, words):
        token, other = words(" t")[0], words("x")[0]
        model = make(Say((token, other)))
        options = {**ENGLISH, "without_timestamps": True, "suppress_tokens": f"-1,{token}"}
        assert token not in model.transcribe(sound(2), **options).segments[0].tokens

    @pytest.mark.parametrize("name", ["initial_prompt", "prefix", "suppress_tokens"])
    def test_tokens_that_the_model_lacks(self, make, name):
        model = make(Say(()))
        for token in (-2, model.backend.n_vocab):
            with pytest.raises(UsageError, match=f"{name} has {token}; the"):
                model.transcribe(sound(1), **ENGLISH, **{name: [token]})

    def test_a_prefix_has_tokens_of_text_only(self, make):
        model = make(Say(()))
        with pytest.raises(UsageError, match="prefix has"):
            model.transcribe(sound(1), **ENGLISH, prefix=[model.tokenizer.special.eot])

    @pytest.mark.parametrize("given", ["en", {"language": "en"}])
    def test_options_are_written_by_name(self, make, given):
        expected = f"options are a {type(given).__name__}; write them by name, such as language"
        with pytest.raises(UsageError, match=expected):
            make(Say(())).transcribe(sound(1), given)

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("langauge", "did you mean language"),
            ("vad_filter", "write vad="),
            ("log_prob_threshold", "write logprob_threshold="),
            ("max_new_tokens", "write sample_len="),
            ("clip_timestamps", r"transcribe a part of load_audio\(path\)"),
            ("xyz", "there are language, languages"),
        ],
    )
    def test_an_unknown_option_says_what_to_write(self, make, name, advice):
        model = make(Say(()))
        with pytest.raises(UsageError, match=f"unknown option {name}.*{advice}"):
            model.transcribe(sound(1), **{name: 1})


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, kind in get_type_hints(TranscribeOptions).items()
        if kind in (int, float, int | None, float | None)
    ],
)
def test_a_number_is_never_text(name):
    with pytest.raises(UsageError, match=name):
        TranscribeOptions(**{name: "2"})
