"""Special tokens, text, suppression lists and languages, from the model folder alone."""

import json

import msgspec
import numpy as np
import pytest
import tiny_whisper
import tokenizers
from fake_backend import write_companions
from own_layout import own_layout

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.runtime import languages
from whisper_npu.runtime.languages import LANGUAGES, language_code
from whisper_npu.runtime.model_folder.config import GenerationConfig, ModelConfig
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.text.byte_decoder import TokenText
from whisper_npu.runtime.text.tokenizer import (
    Tokenizer,
    Vocabulary,
    read_vocabulary,
    require_language,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_companions(tmp_path_factory.mktemp("tiny")) / "tokenizer.json")


@pytest.fixture(scope="session")
def real(tiny_en_folder):
    return Tokenizer(tiny_en_folder / "tokenizer.json")


def folder_of(path, *, config=None, generation=None):
    return ModelFolder(
        path,
        msgspec.convert(config or {}, ModelConfig),
        msgspec.convert(generation or {}, GenerationConfig),
        {},
        own_layout(path),
    )


class TestTiny:
    def test_tokens_after_the_timestamps_are_never_written(self, tokenizer, tmp_path, caplog):
        end = tokenizer.special.timestamp_begin + 1501
        assert tokenizer.n_vocab == end
        usual = read_vocabulary(folder_of(tmp_path), tokenizer, end).suppress
        padded = read_vocabulary(folder_of(tmp_path), tokenizer, end + 2).suppress
        assert padded == (*usual, end, end + 1)
        assert not caplog.records
        content = json.loads(tiny_whisper.build_tokenizer_json())
        token = content["added_tokens"][-1] | {"id": end, "content": " own"}
        content["added_tokens"].append(token)
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        added = Tokenizer(tmp_path / "tokenizer.json")
        assert read_vocabulary(folder_of(tmp_path), added, end + 1).suppress == (*usual, end)
        assert "are never written:  own" in caplog.text

    def test_special_tokens_follow_the_vocabulary(self, tokenizer):
        special = tokenizer.special
        assert special.sot == special.eot + 1
        assert special.languages == {
            code: special.sot + 1 + i for i, code in enumerate(tiny_whisper.LANGUAGES)
        }
        assert special.timestamp_begin == special.no_timestamps + 1
        assert special.no_speech == special.no_timestamps - 1

    @pytest.mark.parametrize("text", ["Ever tried.", " the cat", "Grüße, мир, 世界 🎉", "", "\n"])
    def test_round_trip(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_special_tokens_are_no_text(self, tokenizer):
        special = tokenizer.special
        words = tokenizer.encode(" hello")
        noise = [special.sot, special.timestamp_begin, special.timestamp_begin + 70, special.eot]
        assert tokenizer.decode([noise[0], noise[1], *words, noise[2], noise[3]]) == " hello"

    def test_text_that_looks_like_a_special_token_is_told_apart_by_nobody(self, tokenizer):
        assert tokenizer.encode("<|endoftext|>") == [tokenizer.special.eot]

    @pytest.mark.parametrize(
        ("name", "content"),
        [("empty", b""), ("text", b"hello"), ("json", b"{}"), ("list", b"[1, 2]")],
    )
    def test_a_broken_file(self, tmp_path, name, content):
        path = tmp_path / f"{name}.json"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="export the model again"):
            Tokenizer(path)

    def test_a_tokenizer_of_another_model(self, tmp_path):
        content = json.loads(tiny_whisper.build_tokenizer_json())
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] != "<|notimestamps|>"
        ]
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=r"has no token <\|notimestamps\|>; is this a Whisper"):
            Tokenizer(path)

    def test_tokens_that_do_not_stand_for_bytes(self, tmp_path):
        content = json.loads(tiny_whisper.build_tokenizer_json())
        content["decoder"] = {"type": "Metaspace"}
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ModelError, match="its tokens do not stand for bytes; export the model"):
            Tokenizer(path)


class TestWords:
    def test_words_are_split_at_spaces_and_punctuation(self, tokenizer):
        text = " Ever tried. Ever failed!"
        words, tokens = tokenizer.split_to_words(tokenizer.encode(text), "en")
        assert words == [" Ever", " tried", ".", " Ever", " failed", "!"]
        assert [token for group in tokens for token in group] == tokenizer.encode(text)

    def test_characters_that_take_several_tokens_stay_whole(self, tokenizer):
        tokens = tokenizer.encode("世界 é🎉")
        words, groups = tokenizer.split_to_words(tokens, "ja")
        assert words == ["世", "界", " ", "é", "🎉"]
        assert [len(group) for group in groups] == [3, 3, 1, 2, 4]


class TestVocabulary:
    def test_lists_of_the_folder(self, tokenizer, tmp_path):
        generation = {
            "suppress_tokens": [7, 3, 3, -1],
            "begin_suppress_tokens": [220, 5],
            "is_multilingual": False,
        }
        got = read_vocabulary(folder_of(tmp_path, generation=generation), tokenizer)
        assert got == Vocabulary(is_multilingual=False, suppress=(3, 7), begin_suppress=(220, 5))

    @pytest.mark.parametrize("vocab_size", [51864, 51865, 51872, None])
    @pytest.mark.parametrize(
        ("generation", "multilingual"),
        [({}, True), ({"is_multilingual": True}, True), ({"is_multilingual": False}, False)],
    )
    def test_languages_tell_a_multilingual_model(
        self, tokenizer, tmp_path, vocab_size, generation, multilingual
    ):
        """And not its size, which may have been padded."""
        folder = folder_of(tmp_path, config={"vocab_size": vocab_size}, generation=generation)
        assert read_vocabulary(folder, tokenizer).is_multilingual is multilingual

    @pytest.mark.slow
    @pytest.mark.parametrize("vocab_size", [51864, 51865, 51872, None])
    @pytest.mark.parametrize(
        "generation", [{}, {"is_multilingual": True, "lang_to_id": {"<|en|>": 50258}}]
    )
    def test_gpt2s_text_tokens_tell_an_english_one(self, tmp_path, vocab_size, generation):
        """Its tokenizer lists the languages, too, and its fine-tunes copy other configurations."""
        (tmp_path / "tokenizer.json").write_bytes(tiny_whisper.build_tokenizer_json(english=True))
        english = Tokenizer(tmp_path / "tokenizer.json")
        assert english.special.languages["de"] == english.special.sot + 3
        folder = folder_of(tmp_path, config={"vocab_size": vocab_size}, generation=generation)
        assert not read_vocabulary(folder, english).is_multilingual

    def test_whispers_own_rule_where_the_folder_says_nothing(self, tokenizer, tmp_path):
        got = read_vocabulary(folder_of(tmp_path), tokenizer)
        special = tokenizer.special
        for token in (special.sot, special.sot_prev, special.translate, special.no_speech):
            assert token in got.suppress
        assert special.eot not in got.suppress
        assert tokenizer.encode("(")[0] in got.suppress
        assert tokenizer.encode("a")[0] not in got.suppress
        assert got.begin_suppress == (*tokenizer.encode(" "), special.eot)


class TestTinyEn:
    def test_ids(self, real):
        special = real.special
        assert (special.eot, special.sot) == (50256, 50257)
        assert (special.no_speech, special.no_timestamps) == (50361, 50362)
        assert special.timestamp_begin == 50363

    def test_whispers_own_rule_gives_the_published_lists(self, real, tiny_en_folder):
        published = json.loads((tiny_en_folder / "generation_config.json").read_text())
        ours = read_vocabulary(folder_of(tiny_en_folder), real)
        assert list(ours.suppress) == published["suppress_tokens"]
        assert list(ours.begin_suppress) == published["begin_suppress_tokens"]

    def test_encoding_is_that_of_transformers(self, real, tiny_en_folder):
        from transformers import WhisperTokenizerFast

        theirs = WhisperTokenizerFast(tokenizer_file=str(tiny_en_folder / "tokenizer.json"))
        for text in (" Ever tried. Ever failed.", "naïve café 30% — «ok»", " 東京 🎉", "  two"):
            ids = theirs(text, add_special_tokens=False).input_ids
            assert real.encode(text) == ids
            assert real.decode(ids) == text


class TestLanguages:
    def test_hundred_languages_as_the_reference_lists_them(self):
        from transformers.models.whisper import tokenization_whisper as theirs

        assert theirs.LANGUAGES == LANGUAGES
        for name, code in theirs.TO_LANGUAGE_CODE.items():
            assert language_code(name) == code

    @pytest.mark.parametrize("name", ["de", "DE", "German", " german ", "GERMAN"])
    def test_code_or_name_in_any_case(self, name):
        assert language_code(name) == "de"

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            *[("en-US", "en"), ("zh-TW", "zh"), ("pt_BR", "pt"), ("sr-Latn-RS", "sr")],
            *[("nb", "no"), ("jv", "jw"), ("iw", "he"), ("fil", "tl"), ("cmn", "zh")],
            *[("Mandarin", "zh"), ("Farsi", "fa"), ("yue", "yue"), ("zh-yue", "yue")],
            *[("ger", "de"), ("deu", "de"), ("fre", "fr"), ("slo", "sk"), ("nn", "nn")],
        ],
    )
    def test_other_names_of_a_language(self, name, code):
        assert language_code(name) == code

    def test_every_language_has_a_code_of_three_letters(self):
        """Containers name languages by these; every other alias must lead somewhere, too."""
        three = {code for name, code in languages._CODES.items() if len(name) == 3}
        assert three == set(LANGUAGES) == set(languages._CODES.values())

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("Germn", r"unknown language 'Germn'; did you mean german\?"),
            ("Noregian", "did you mean norwegian"),
            ("xx", r"unknown language 'xx'; `whisper-npu transcribe --list-languages` prints all"),
            ("", "unknown language ''; "),
            ("de,en", "unknown language 'de,en'; "),
        ],
    )
    def test_unknown(self, name, told):
        with pytest.raises(UsageError, match=told):
            language_code(name)

    def test_what_a_model_can_transcribe(self, tokenizer):
        english = Vocabulary(is_multilingual=False, suppress=(), begin_suppress=())
        several = Vocabulary(is_multilingual=True, suppress=(), begin_suppress=())
        assert require_language(tokenizer, english, "English") == "en"
        assert require_language(tokenizer, several, "Spanish") == "es"
        with pytest.raises(UsageError, match="English-only and cannot transcribe german"):
            require_language(tokenizer, english, "German")
        with pytest.raises(UsageError, match=r"no language token for welsh \(cy\)$"):
            require_language(tokenizer, several, "Welsh")
        with pytest.raises(UsageError, match=r"cantonese \(yue\); give zh, or use large-v3"):
            require_language(tokenizer, several, "yue")

    def test_text_is_that_of_the_tokenizers_library(self, tiny_en_folder):
        path = tiny_en_folder / "tokenizer.json"
        theirs, ours = tokenizers.Tokenizer.from_file(str(path)), TokenText(path)
        numbers = range(theirs.get_vocab_size() + 1600)  # timestamps and unknown ids too
        for number in numbers:
            assert ours.text([number]) == theirs.decode([number], skip_special_tokens=False)
        rng = np.random.default_rng(0)
        for length in rng.integers(2, 12, 2000):
            for highest in (256, len(numbers)):  # the first are single bytes: broken characters
                ids = rng.integers(0, highest, length).tolist()
                assert ours.text(ids) == theirs.decode(ids, skip_special_tokens=False)
