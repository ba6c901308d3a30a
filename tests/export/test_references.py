from pathlib import Path

import pytest

from whisper_npu.errors import UsageError
from whisper_npu.export.references import Reference, read_references


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_manifest_is_relative_to_itself(tmp_path) -> None:
    manifest = write(tmp_path / "set" / "references.tsv", "a.wav\tone two\nsub/b.flac\tthree\n")
    assert read_references(manifest) == [
        Reference("a.wav", tmp_path / "set" / "a.wav", "one two"),
        Reference("sub/b.flac", tmp_path / "set" / "sub" / "b.flac", "three"),
    ]


def test_absolute_path_in_a_manifest(tmp_path) -> None:
    manifest = write(tmp_path / "references.tsv", f"{tmp_path / 'x' / 'a.wav'}\tone\n")
    assert read_references(manifest)[0].audio == tmp_path / "x" / "a.wav"


@pytest.mark.parametrize(
    "content",
    [
        "audio\treference\na.wav\tein Käse\n",
        "File\tText\na.wav\tein Käse\n",
        b"\xef\xbb\xbfa.wav\tein K\xc3\xa4se\n",
        b"\xef\xbb\xbfaudio\treference\r\na.wav\tein K\xc3\xa4se\r\n",
        "\n\na.wav\tein Käse\n\n",
        "a.wav\tein Käse",
    ],
    ids=["header", "other header", "BOM", "BOM, header, CRLF", "blank lines", "no final newline"],
)
def test_forms_of_a_manifest(tmp_path, content) -> None:
    manifest = write(tmp_path / "references.tsv", content)
    assert read_references(manifest) == [Reference("a.wav", tmp_path / "a.wav", "ein Käse")]


def test_a_recording_without_speech_has_an_empty_reference(tmp_path) -> None:
    manifest = write(tmp_path / "references.tsv", "silence.wav\t\n")
    assert read_references(manifest)[0].text == ""


def test_a_line_separator_inside_a_sentence_ends_no_line(tmp_path) -> None:
    manifest = write(tmp_path / "references.tsv", "a.wav\tone\u2028two\n")
    assert read_references(manifest)[0].text == "one\u2028two"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.wav\tone\nb.wav two\n", "line 2: no audio<TAB>reference: 'b.wav two'"),
        ("\n\ttwo\n", "line 2: no audio<TAB>reference"),
        ("a.wav\tone\n\nb.wav\ttwo\t3\n", "line 3: 3 columns"),
        (b"a.wav\tone\nb.wav\tz\xe9ro\n", "line 2: not UTF-8"),
        ("", "lists no recordings"),
        ("audio\treference\n", "lists no recordings"),
    ],
)
def test_malformed_manifest(tmp_path, content, message) -> None:
    manifest = write(tmp_path / "references.tsv", content)
    with pytest.raises(UsageError, match=message) as caught:
        read_references(manifest)
    assert str(manifest) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_manifest(tmp_path) -> None:
    with pytest.raises(UsageError, match="no such manifest"):
        read_references(tmp_path / "none.tsv")


def test_librispeech_folder(tmp_path) -> None:
    write(tmp_path / "1" / "2" / "1-2.trans.txt", "1-2-0000 HELLO THERE\n1-2-0001 YES\n")
    write(tmp_path / "3" / "4" / "3-4.trans.txt", "3-4-0000 NO\n")
    flac = write(tmp_path / "1" / "2" / "1-2-0000.flac", b"")
    wav = write(tmp_path / "1" / "2" / "1-2-0001.wav", b"")
    assert read_references(tmp_path) == [
        Reference("1-2-0000", flac, "HELLO THERE"),
        Reference("1-2-0001", wav, "YES"),
        # Not there: reading it will tell.
        Reference("3-4-0000", tmp_path / "3" / "4" / "3-4-0000.flac", "NO"),
    ]


def test_malformed_librispeech_transcript(tmp_path) -> None:
    write(tmp_path / "1-2.trans.txt", "1-2-0000 HELLO\n1-2-0001\n")
    with pytest.raises(UsageError, match=r"1-2\.trans\.txt, line 2: no id and text"):
        read_references(tmp_path)


def test_folder_of_another_kind_names_the_manifest_in_it(tmp_path) -> None:
    manifest = write(tmp_path / "references.tsv", "a.wav\tone\n")
    with pytest.raises(UsageError, match=r"not a LibriSpeech folder .* did you mean") as caught:
        read_references(tmp_path)
    assert str(manifest) in str(caught.value)
