"""Transcribes a corpus on Ray: thousands of hours, every recording exactly once.

    manifests  -> the recordings of a corpus, from any kind of manifest (json_manifests: of JSON)
    index      -> digest and length of every recording
    plan       -> the work that no earlier run has done
    worker     -> an actor with a model; writes the results of a block of work as one file
    store      -> those files, which are the memory of all runs
    publish    -> the outputs: one row for every row of the manifest
    verify     -> proves that the outputs are complete

This package uses the public interface of `whisper_npu` only.
"""
