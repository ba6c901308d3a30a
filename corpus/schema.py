"""The columns of a corpus: manifest, results and outputs. docs/corpus.md describes them."""

import pyarrow as pa

# A row of the manifest, whatever its kind.
MANIFEST = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("audio", pa.string(), nullable=False),  # a path or URL
        pa.field("start", pa.int64()),  # of the recording's bytes in a tar file
        pa.field("size", pa.int64()),
        pa.field("row", pa.int64()),  # of the recording in a parquet file
        pa.field("offset", pa.float64()),  # seconds; a cut if offset or seconds is given
        pa.field("seconds", pa.float64()),
        pa.field("stated_seconds", pa.float64()),  # length according to the manifest
        pa.field("reference", pa.string()),
        pa.field("fields", pa.string()),  # JSON of the row as it came in
    ]
)

WORD = pa.struct(
    [
        pa.field("start", pa.float64()),
        pa.field("end", pa.float64()),
        pa.field("word", pa.string()),
        pa.field("probability", pa.float64()),
    ]
)
SEGMENT = pa.struct(
    [
        pa.field("id", pa.int32()),
        pa.field("start", pa.float64()),
        pa.field("end", pa.float64()),
        pa.field("text", pa.string()),
        pa.field("words", pa.list_(WORD)),
        pa.field("language", pa.string()),
        pa.field("channel", pa.string()),
        pa.field("temperature", pa.float64()),
        pa.field("avg_logprob", pa.float64()),
        pa.field("compression_ratio", pa.float64()),
        pa.field("no_speech_prob", pa.float64()),
        pa.field("flaw", pa.string()),
    ]
)
COVERAGE = pa.struct(
    [pa.field(fate, pa.float64()) for fate in ("transcribed", "silent", "skipped", "dropped")]
)
_RESULT_FIELDS = [
    pa.field("text", pa.string()),
    pa.field("language", pa.string()),
    pa.field("segments", pa.list_(SEGMENT)),
    pa.field("duration", pa.float64()),
    pa.field("coverage", COVERAGE),
    pa.field("warnings", pa.list_(pa.string())),
    pa.field("device", pa.string()),
    pa.field("precision", pa.string()),
    pa.field("kv_cache", pa.string()),
    pa.field("model", pa.string()),
    pa.field("work_seconds", pa.float64()),
    pa.field("error", pa.string()),
]

# The result for a content, a cut, a model and options, which `key` is a digest of.
RESULT = pa.schema([pa.field("key", pa.string(), nullable=False), *_RESULT_FIELDS])

# One row for every row of the manifest, in its order.
OUTPUT = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("audio", pa.string(), nullable=False),
        pa.field("offset", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("reference", pa.string()),
        *_RESULT_FIELDS,
        pa.field("digest", pa.string()),
        pa.field("key", pa.string()),
        pa.field("fields", pa.string()),
    ]
)
