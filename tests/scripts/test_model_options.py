"""Options for model and device: every command hands all it takes to `load_model`."""

import argparse
import io

import pytest

from whisper_npu import api, errors
from whisper_npu.corpus import run as corpus_run
from whisper_npu.scripts import corpus, serve, serve_wyoming, stream, transcribe
from whisper_npu.scripts.common import cli, live_transcription
from whisper_npu.scripts.common.decoding_options import add_model_options, model_options
from whisper_npu.server import run as server_run

GIVEN = {
    "device": "NPU_EMULATED",
    "backend": "onnxruntime",
    "kv_cache": "static",
    "precision": "f16",
    "threads": 3,
    "variant": "plain",
}
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in GIVEN.items()]


@pytest.fixture
def loaded(monkeypatch):
    """The keyword arguments that a command loads its model with; it ends there."""
    found = {}

    def load_model(_path, *, progress=None, **options):
        found.update(options)
        raise errors.ModelError("enough")

    for module in (api, live_transcription):
        monkeypatch.setattr(module, "load_model", load_model)
    return found


def test_every_option_is_an_argument_of_load_model():
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    arguments = parser.parse_args(ARGUMENTS)
    assert model_options(arguments) == GIVEN
    assert vars(arguments).keys() - GIVEN.keys() == {"model"}


def test_transcribe(loaded, tiny_folder, tiny_audio):
    code = transcribe.main([str(tiny_audio[0]), "--model", str(tiny_folder), *ARGUMENTS])
    assert (code, loaded) == (cli.EXIT_NO_MODEL, GIVEN)


def test_stream(loaded, tiny_folder, monkeypatch):
    monkeypatch.setattr(cli, "standard_input", lambda: io.BytesIO(b""))
    code = stream.main(["--model", str(tiny_folder), *ARGUMENTS])
    assert (code, loaded) == (cli.EXIT_NO_MODEL, GIVEN)


def test_wyoming(loaded, tiny_folder):
    code = serve_wyoming.main(["--model", str(tiny_folder), *ARGUMENTS])
    assert (code, loaded) == (cli.EXIT_NO_MODEL, GIVEN)


def test_corpus(tiny_folder, tiny_audio, tmp_path, monkeypatch):
    found = []

    def run_corpus(job, *_callbacks):
        found.append(job.settings.load)
        raise errors.ModelError("enough")

    monkeypatch.setattr(corpus_run, "run_corpus", run_corpus)
    arguments = [str(tiny_audio[0].parent), "--output", str(tmp_path), "--model", str(tiny_folder)]
    assert corpus.main([*arguments, *ARGUMENTS]) == cli.EXIT_NO_MODEL
    assert found == [GIVEN]


def test_serve_has_some_of_them(tiny_folder, monkeypatch):
    found = []

    def server(config, *_arguments, **_options):
        found.append({name: getattr(config, name) for name in GIVEN if hasattr(config, name)})
        raise errors.ModelError("enough")

    monkeypatch.setattr(server_run, "Server", server)
    offered = {"device", "precision", "threads", "variant"}
    arguments = [f"--{name}={GIVEN[name]}" for name in offered]
    assert serve.main(["--model", str(tiny_folder), *arguments]) == cli.EXIT_NO_MODEL
    assert found == [{name: GIVEN[name] for name in offered}]
