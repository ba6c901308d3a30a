"""Manifests of bundles that are hostile or damaged: one line that names the field."""

import json

import pytest

from whisper_npu.errors import ModelError
from whisper_npu.npu.bundle import MANIFEST, read_bundle, read_manifest
from whisper_npu.npu.bundle_manifest import BundleManifest
from whisper_npu.runtime.model_folder.json_files import checked

SOUND = {
    "recipe": {"weights": "lossless", "windows": [30], "buckets": [4, 227], "step_rows": [1, 4]},
    "frames": [3000],
    "sizes": {"n_mels": 80, "n_text_ctx": 448},
    "data_sha256": "00",
    "graphs": {"step_1": {"sha256": "00", "inputs": {"input_ids": [1, 1]}, "outputs": {}}},
    "files": {},
}


def test_a_sound_one_is_read():
    read = checked(SOUND, BundleManifest, MANIFEST)
    assert read.recipe.buckets == (4, 227)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"recipe": {"weights": 1, "buckets": [], "step_rows": []}}, "recipe.weights"),
        ({"recipe": {"weights": "f16", "buckets": "4", "step_rows": []}}, "recipe.buckets"),
        ({"recipe": {"weights": "f16", "buckets": [4], "step_rows": [0]}}, "recipe.step_rows"),
        ({"frames": ["3000"]}, "frames"),
        ({"sizes": {"n_mels": None}}, "sizes"),
        ({"data_sha256": 7}, "data_sha256"),
        ({"graphs": {"step_1": {"sha256": "0"}}}, "graphs"),
        ({"graphs": {"step_1": None}}, "graphs"),
        ({"graphs": []}, "graphs"),
    ],
)
def test_what_is_wrong_is_named(change, field):
    with pytest.raises(ModelError) as caught:
        checked(SOUND | change, BundleManifest, MANIFEST)
    assert str(caught.value).startswith(f"{MANIFEST}: {field}")
    assert "\n" not in str(caught.value)


def test_a_bundle_with_a_hostile_manifest(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps(SOUND | {"frames": None}))
    assert read_manifest(tmp_path) is not None
    with pytest.raises(ModelError, match="frames: expected array, got null; make it again with"):
        read_bundle(tmp_path)
