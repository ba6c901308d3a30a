"""Cuts recordings that would keep one actor busy when all others are done, and joins their texts.

A part is decoded from the windows of the whole recording, so its text is the same as without cuts;
what comes before a part is read again for it, which takes some hundredths of the time to decode it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whisper_npu import model_languages
from whisper_npu.corpus.plan import Part, Plan
from whisper_npu.corpus.store import KEY_LENGTH, ResultStore, work_key
from whisper_npu.corpus.worker import ModelSettings

_SHORTEST = 600.0  # seconds of a part: reading what comes before it costs more than it gains


def can_cut(settings: ModelSettings) -> bool:
    """Whether recordings may be decoded in parts with these options; see `TranscribeOptions.part`.

    Raises:
        ModelError: the model cannot be read.
    """
    options, load = settings.options, settings.load
    hinders = (
        options.mode == "sequential",
        not options.vad,
        options.multilingual,
        options.prefix is not None,
        options.condition_on_previous_text,
        options.channels == "split",
        options.audio_track == "all",
        # Arithmetic that is exact, or may be: it goes with the text before a window as its context.
        load.get("device", "CPU").upper() != "CPU",
        load.get("precision") == "f32",
        load.get("kv_cache", "auto") != "auto",
        load.get("backend", "openvino") != "openvino",
    )
    if any(hinders):
        return False
    languages = model_languages(settings.model, load.get("variant"))
    return options.language is not None or len(languages) == 1


def cut(plan: Plan, actors: int) -> dict[int, list[Part]]:
    """The parts of the rows that are cut, by their numbers.

    Args:
        plan: the work.
        actors: processes that share it. A row is cut if it is longer than the share of one.
    """
    share = plan.seconds_to_do / actors
    found: dict[int, list[Part]] = {}
    for number in plan.todo[plan.seconds[plan.todo] > share]:
        seconds = float(plan.seconds[number])
        n_parts = min(actors, math.ceil(seconds / share), int(seconds / _SHORTEST))
        if n_parts > 1:
            edges = [seconds * part / n_parts for part in range(n_parts)]
            found[int(number)] = [
                Part(work_key(plan.keys[number].decode(), start, end), start, end)
                for start, end in zip(edges, [*edges[1:], math.inf], strict=True)
            ]
    return found


def missing(
    parts: Mapping[int, Sequence[Part]], store: ResultStore, *, retry_errors: bool
) -> dict[int, list[Part]]:
    """The parts that no earlier run has transcribed, by the numbers of their rows."""
    if not parts:
        return {}
    done = store.read_keys()
    left: dict[int, list[Part]] = {}
    for number, every in parts.items():
        places, failed = done.find(np.array([part.key for part in every], f"S{KEY_LENGTH}"))
        wanted = (places < 0) | (failed & retry_errors)
        left[number] = [part for part, is_wanted in zip(every, wanted, strict=True) if is_wanted]
    return left


def join(key: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a row of the manifest, from those of its parts in order.

    Args:
        key: of the row.
        rows: of the parts, rows of `RESULT`.
    """
    work_seconds = math.fsum(row["work_seconds"] for row in rows)
    for row in rows:
        if row["error"] is not None:
            return {"key": key, "error": row["error"], "work_seconds": work_seconds}
    segments = [segment for row in rows for segment in row["segments"]]
    duration = max(row["duration"] for row in rows)  # only the last part is read to the end
    coverage = {
        fate: math.fsum(row["coverage"][fate] for row in rows) for fate in rows[0]["coverage"]
    }
    warnings = dict.fromkeys(warning for row in rows for warning in row["warnings"])
    return {
        **rows[0],
        "key": key,
        "text": "".join(segment["text"] for segment in segments).strip(),
        "segments": [{**segment, "id": number} for number, segment in enumerate(segments)],
        "duration": duration,
        "coverage": coverage,
        "warnings": list(warnings),
        "work_seconds": work_seconds,
    }
