"""Reports on the outputs of a corpus: errors, and the error rate where there are references."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from whisper_npu.corpus.names import PARQUET
from whisper_npu.corpus.storage import Folder
from whisper_npu.errors import UsageError
from whisper_npu.export.references import Reference
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.scripts.common import console
from whisper_npu.scripts.common.outputs import needing_the_extra

_SETTINGS = ("model", "device", "kv_cache", "precision")
_MOST_ERRORS = 5  # that are printed
_COLUMNS = (
    *("id", "audio", "reference", "text", "language", "duration", "work_seconds", "warnings"),
    *("error", *_SETTINGS),
)


def report(output: str, options: TranscribeOptions, max_wer: float | None) -> bool:
    """Print the first errors, and the error rate if the manifest has references.

    Args:
        output: the folder of the outputs.
        options: of the transcription.
        max_wer: the highest permitted error rate, in percent; None for no limit.

    Returns:
        whether every recording has a text and the error rate is permitted.

    Raises:
        UsageError: there is a limit, but no row has a reference, or a library is missing.
    """
    n_errors = 0
    for row in _rows(output):
        if row["error"] is not None:
            n_errors += 1
            if n_errors <= _MOST_ERRORS:
                named = row["error"].partition(": ")[0]  # the recording's path
                is_named = f"/{named}".endswith(f"/{row['id']}")  # most ids are paths
                console.error(row["error"] if is_named else f"{row['id']}: {row['error']}")
    if n_errors > _MOST_ERRORS:
        console.note(f"{n_errors} recordings have an error; {PARQUET} has the reasons")
    return _rate_is_permitted(output, options, max_wer) and n_errors == 0


def _rows(output: str) -> Iterator[dict[str, Any]]:
    with Folder(output).open(PARQUET) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=list(_COLUMNS)):
            yield from batch.to_pylist()


def _rate_is_permitted(output: str, options: TranscribeOptions, max_wer: float | None) -> bool:
    """Print the table of `whisper-npu wer` for the rows with a reference."""
    judged = [row for row in _rows(output) if row["reference"] is not None]
    if not any(row["error"] is None for row in judged):
        if max_wer is not None:
            raise UsageError("--max-wer: no row with a text has a reference to compare it with")
        return True
    with needing_the_extra("measuring error rates"):
        from whisper_npu.scripts.evaluation import report as tables  # noqa: PLC0415
        from whisper_npu.scripts.evaluation import wer  # noqa: PLC0415
        from whisper_npu.scripts.evaluation.word_errors import (  # noqa: PLC0415
            Failure,
            Run,
            Transcript,
            evaluate,
        )
    transcripts: list[Transcript] = []
    failures: list[Failure] = []
    for row in judged:
        reference = Reference(row["id"], Path(row["audio"]), row["reference"])
        if row["error"] is not None:
            failures.append(Failure(reference, row["error"]))
            continue
        facts = (row["text"], row["language"], row["duration"], row["work_seconds"])
        transcripts.append(Transcript(reference, *facts, tuple(row["warnings"])))
    first = next(row for row in judged if row["error"] is None)
    run = Run(
        {name: first[name] for name in _SETTINGS},
        options,
        tuple(transcripts),
        tuple(failures),
        sum(transcript.seconds for transcript in transcripts),
    )
    evaluation = evaluate(run, wer.metric_for(run.main_language()))
    print(tables.conditions(evaluation))
    print(tables.summary_table([evaluation]), end="\n\n")
    rate = evaluation.rate
    print(f"{evaluation.metric.name}: {'-' if rate is None else format(rate, '.2f')}")
    above = tables.above([evaluation], max_wer)
    for line in above:
        console.note(line)
    return not above
