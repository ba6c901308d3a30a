"""Options of the command line reach the options of a transcription, each by its name."""

import argparse
from dataclasses import fields

import pytest

from whisper_npu import TranscribeOptions
from whisper_npu.scripts.common.decoding_options import add_decoding_options, decoding_options

# Arguments that are no field by themselves, and fields that the command line does not offer.
NO_FIELD = {"list_languages", "temperature_increment_on_fallback"}
NOT_OFFERED = {"part", "sample_len", "suppress_blank"}


def parsed(*arguments, live=False):
    parser = argparse.ArgumentParser()
    add_decoding_options(parser, live=live)
    return parser.parse_args(arguments)


def test_every_argument_is_a_field_and_every_field_an_argument():
    arguments = set(vars(parsed()))
    names = {each.name for each in fields(TranscribeOptions)}
    assert arguments - names == NO_FIELD
    assert names - arguments == NOT_OFFERED


@pytest.mark.parametrize("live", [False, True])
def test_the_defaults_are_those_of_python(live):
    assert decoding_options(parsed(live=live)) == TranscribeOptions()


def test_an_argument_reaches_its_field():
    options = decoding_options(parsed("--length-penalty", "0.5", "--vad-threshold", "0.3"))
    assert (options.length_penalty, options.vad_threshold) == (0.5, 0.3)
