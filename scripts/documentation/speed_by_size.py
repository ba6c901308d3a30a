"""Draws `docs/pictures/speed_by_size.png` of figures that stand in the documentation.

python -m whisper_npu.scripts.documentation.speed_by_size docs/pictures/speed_by_size.png
"""

import sys
from pathlib import Path

from whisper_npu.scripts.benchmarks.plots import Group, grouped_bars

OURS = "whisper-npu (int8, default)"
# Times real time: README.md (tiny.en, base); docs/models.md (the sizes of small and medium).
FIGURES: dict[str, dict[str, float]] = {
    "tiny.en": {OURS: 227, "OpenVINO GenAI INT8": 105, "faster-whisper INT8, batched": 52},
    "base": {OURS: 121, "OpenVINO GenAI INT8": 59, "faster-whisper INT8, batched": 31},
    "small's size": {
        OURS: 38.1,
        "OpenVINO GenAI INT8": 22.2,
        "faster-whisper INT8, batched": 13.2,
    },
    "medium's size": {OURS: 12.6, "OpenVINO GenAI INT8": 7.5},
}


def main() -> None:
    """Draw the picture; the first argument is its file."""
    grouped_bars(
        [
            Group(
                size,
                {name: (value, value, value) for name, value in speeds.items()},
                {name: f"{value:g} x" for name, value in speeds.items()},
            )
            for size, speeds in FIGURES.items()
        ],
        Path(sys.argv[1]),
        title="Speed by model size: long recordings, two cores",
        subtitle="AMD EPYC (AVX512 BF16, VNNI), 2026-11-23; other sizes 2026-11-29",
        x_label="times real time",
    )


if __name__ == "__main__":
    main()
