"""Finding the files of a model among those that other exporters write. No file is read."""

import pytest

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.model_folder.layout import GRAPHS, find_layout, weight_files

MERGED = ("encoder_model", "decoder_model_merged")
TRIO = ("encoder_model", "decoder_model", "decoder_with_past_model")


@pytest.fixture
def make(tmp_path):
    """A function that makes a folder with these files, all empty."""

    def write(*names, tokenizer="tokenizer.json"):
        folder = tmp_path / "any name"
        for name in (*names, *([tokenizer] if tokenizer else [])):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
        return folder

    return write


def names(layout, folder):
    return [path.relative_to(folder).as_posix() for path in layout.graphs]


class TestPlaces:
    def test_this_projects_own(self, make):
        folder = make(*GRAPHS, "decoder_alignment_model.onnx")
        layout = find_layout(folder)
        assert names(layout, folder) == list(GRAPHS)
        assert layout.alignment == folder / "decoder_alignment_model.onnx"
        assert (layout.variant, layout.others) == ("plain", ())
        assert not layout.is_openvino

    def test_graphs_in_a_folder_of_their_own(self, make):
        folder = make(*(f"onnx/{name}" for name in GRAPHS))
        assert names(find_layout(folder), folder) == [f"onnx/{name}" for name in GRAPHS]

    def test_a_merged_decoder(self, make):
        folder = make(*(f"onnx/{name}.onnx" for name in MERGED))
        layout = find_layout(folder)
        assert layout.with_past is None
        assert [path.stem for path in layout.graphs_in_order] == [*MERGED, MERGED[1]]

    def test_two_decoders_rather_than_a_merged_one(self, make):
        folder = make(*GRAPHS, "decoder_model_merged.onnx")
        assert names(find_layout(folder), folder) == list(GRAPHS)

    def test_files_of_two_places_are_not_mixed(self, make):
        """A decoder without past lies beside a whole model in `onnx/`."""
        folder = make("encoder_model.onnx", "decoder_model.onnx", *(f"onnx/{n}" for n in GRAPHS))
        assert names(find_layout(folder), folder) == [f"onnx/{name}" for name in GRAPHS]

    def test_parts_in_two_places(self, make):
        folder = make("encoder_model.onnx", *(f"onnx/{name}" for name in GRAPHS[1:]))
        assert names(find_layout(folder), folder) == [GRAPHS[0], *(f"onnx/{n}" for n in GRAPHS[1:])]

    @pytest.mark.parametrize("suffix", ["openvino", "openvino_fp16", "plain"])
    def test_onnx_files_called_like_other_variants(self, make, suffix):
        own = [f"openvino_{part}.xml" for part in TRIO[:2]]
        folder = make(*own, *(f"{name}_{suffix}.onnx" for name in MERGED), *GRAPHS)
        assert names(find_layout(folder, "openvino"), folder) == own
        assert find_layout(folder).others == ("openvino",)

    def test_a_folder_that_cannot_be_listed(self, make, monkeypatch):
        folder = make(*GRAPHS)

        def refuse(_path):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(folder), "iterdir", refuse)
        with pytest.raises(ModelError, match="Permission denied; check the folder's permissions"):
            find_layout(folder)

    @pytest.mark.parametrize("parts", [TRIO, TRIO[:2]])
    def test_openvinos_files(self, make, parts):
        folder = make(*(f"openvino_{part}.{kind}" for part in parts for kind in ("xml", "bin")))
        layout = find_layout(folder)
        assert names(layout, folder) == [f"openvino_{part}.xml" for part in parts]
        assert layout.is_openvino
        assert layout.variant == "openvino"
        assert weight_files(layout.encoder) == (folder / "openvino_encoder_model.bin",)

    def test_the_older_form_of_a_tokenizer(self, make):
        folder = make(*GRAPHS, "merges.txt", tokenizer="vocab.json")
        assert find_layout(folder).tokenizer == folder / "vocab.json"
        (folder / "tokenizer.json").write_text("{}")
        assert find_layout(folder).tokenizer == folder / "tokenizer.json"

    def test_openvinos_weights_outside_the_folder(self, make, tmp_path):
        folder = make(*(f"openvino_{part}.xml" for part in TRIO))
        layout = find_layout(folder)
        with pytest.raises(ModelError, match=r"openvino_encoder_model\.bin.* is missing"):
            weight_files(layout.encoder)
        (tmp_path / "secret").write_bytes(b"")
        (folder / "openvino_encoder_model.bin").symlink_to(tmp_path / "secret")
        with pytest.raises(ModelError, match="outside the model folder"):
            weight_files(layout.encoder)


class TestVariants:
    def folder(self, make, encoders, decoders):
        return make(
            *(f"onnx/encoder_model{suffix}.onnx" for suffix in encoders),
            *(f"onnx/decoder_model_merged{suffix}.onnx" for suffix in decoders),
        )

    @pytest.mark.parametrize(
        ("encoders", "decoders", "best"),
        [
            (["", "_fp16", "_q4"], ["", "_fp16", "_q4"], "plain"),
            (["_bnb4", "_q4", "_int8"], ["_bnb4", "_q4", "_int8"], "int8"),
            (["_q4f16", "_uint8", "_quantized"], ["_q4f16", "_uint8", "_quantized"], "quantized"),
            (["", "_q4"], ["_q4"], "encoder=plain,decoder=q4"),
            (["_fp16"], ["_int8", "_bnb4"], "encoder=fp16,decoder=int8"),
            (["_fp16", "_own"], ["_own"], "encoder=fp16,decoder=own"),
        ],
    )
    def test_the_most_exact_without_a_choice(self, make, encoders, decoders, best):
        assert find_layout(self.folder(make, encoders, decoders)).variant == best

    def test_the_chosen_one(self, make):
        folder = self.folder(make, ["", "_fp16", "_q4"], ["", "_q4"])
        layout = find_layout(folder, "q4")
        assert names(layout, folder) == [
            "onnx/encoder_model_q4.onnx",
            "onnx/decoder_model_merged_q4.onnx",
        ]
        assert layout.others == ("plain", "fp16")
        assert "--variant: plain, fp16" in layout.way_on
        mixed = find_layout(folder, "encoder=fp16,decoder=q4")
        assert names(mixed, folder)[0] == "onnx/encoder_model_fp16.onnx"
        assert mixed.others == ("plain", "q4")
        assert find_layout(folder, "encoder=f16,decoder=q4") == mixed

    def test_a_mistyped_one(self, make):
        folder = self.folder(make, ["", "_fp16", "_q4"], ["", "_q4"])
        with pytest.raises(UsageError, match=r"decoder=\.\.\.; did you mean plain\?$"):
            find_layout(folder, "plan")

    @pytest.mark.parametrize("variant", ["fp16", "encoder=q4,decoder=fp16", "openvino", "", "x=y"])
    def test_one_that_is_not_there(self, make, variant):
        folder = self.folder(make, ["", "_fp16"], ["", "_q4"])
        with pytest.raises(UsageError, match="encoder is there as plain, fp16, its decoder as pla"):
            find_layout(folder, variant)

    def test_onnx_beside_openvinos_files(self, make):
        ir = [f"openvino/openvino_{part}.{kind}" for part in TRIO[:2] for kind in ("xml", "bin")]
        folder = make(*GRAPHS, *ir)
        assert find_layout(folder).variant == "plain"
        assert find_layout(folder, "openvino").is_openvino
        with pytest.raises(UsageError, match="no variant"):
            find_layout(folder, "encoder=plain,decoder=openvino")

    def test_the_choice_is_said_once(self, make, caplog):
        folder = self.folder(make, ["", "_fp16"], ["", "_fp16"])
        (folder / "tokenizer.json").write_text("{}")
        with caplog.at_level("INFO", "whisper_npu"):
            read_model_folder(folder)
            read_model_folder(folder, "fp16")
        assert [record.getMessage() for record in caplog.records] == [
            "any name: using the variant plain; it also has fp16 (--variant)"
        ]


class TestRefusals:
    """They say what is missing, what was found, and the shortest way on."""

    @pytest.mark.parametrize(
        ("files", "missing"),
        [
            (GRAPHS[:2], "a decoder"),
            (GRAPHS[1:], "an encoder"),
            (["openvino_encoder_model.xml"], "a decoder"),
            (["tiny.en-encoder.onnx", "tiny.en-decoder.onnx"], "an encoder .* and a decoder"),
        ],
    )
    def test_a_missing_graph(self, make, files, missing):
        folder = make(*files)
        with pytest.raises(ModelError, match=f"lacks {missing}") as caught:
            find_layout(folder)
        assert all(name in str(caught.value) for name in files)
        assert "whisper-npu export CHECKPOINT" in str(caught.value)

    def test_a_missing_tokenizer(self, make):
        with pytest.raises(ModelError, match=r"lacks a tokenizer \(tokenizer\.json\); found: de"):
            find_layout(make(*GRAPHS, tokenizer=None))
        with pytest.raises(ModelError, match=r"lacks the tokenizer's merges\.txt"):
            find_layout(make(*GRAPHS, tokenizer="vocab.json"))

    @pytest.mark.parametrize(
        ("file", "kind"),
        [("model.safetensors", "a checkpoint"), ("model.bin", "a CTranslate2 model")],
    )
    def test_a_checkpoint(self, make, file, kind):
        folder = make(file)
        with pytest.raises(ModelError, match=f"it is {kind}: `whisper-npu export") as caught:
            find_layout(folder)
        assert f"`whisper-npu export {folder} --output DIR`" in str(caught.value)

    def test_a_long_list_is_cut(self, make):
        folder = make(*(f"file {number}" for number in range(30)))
        with pytest.raises(ModelError, match="and 19 more;"):
            find_layout(folder)

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ModelError, match="found: nothing;"):
            find_layout(tmp_path)

    def test_an_encoder_of_another_form(self, make):
        with pytest.raises(ModelError, match=r"one is ONNX, the other OpenVINO's"):
            find_layout(make("encoder_model.onnx", "openvino_decoder_model.xml"))
