"""Names in the outputs of a corpus and in its command line. Imports nothing, and needs no extra."""

PARQUET = "corpus.parquet"
JSON_LINES = "corpus.jsonl"
SUBTITLES = "subtitles"  # a folder
RUN_FILE = "run.json"  # how the outputs were made
STATE = "state"  # the folder of the work
RESULTS = "results"  # the folder of what is done

SUBTITLE_FORMATS = ("srt", "vtt", "txt")
# Kinds of manifests; `manifests` reads them.
KINDS = (
    "nemo",
    "lhotse",
    "tsv",
    "common-voice",
    "librispeech",
    "parquet",
    "webdataset",
    "files",
)
