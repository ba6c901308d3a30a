"""Makes the robustness set: clean utterances become recordings with difficulties of real life.

Each part has one kind of difficulty. `docs/accuracy.md` lists the word error rates of each part.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.scripts.common import cli

EPILOG = f"""\
examples:
  python scripts/robustness_set.py references.tsv robustness/
  for part in robustness/*.tsv; do whisper-npu wer $part --model tiny.en --language en; done

The name of an utterance begins with its speaker and a hyphen, as in LibriSpeech.

{cli.EXIT_CODES}"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "robustness_set",
        description="Make recordings with difficulties of real life (noise, quiet speakers, pauses "
        "and others) from clean utterances, to measure word error rates on.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "references",
        type=Path,
        help="clean utterances: a TSV manifest (audio<TAB>reference) or a LibriSpeech folder",
    )
    parser.add_argument(
        "out", type=Path, help="folder to write the recordings and a manifest for each part to"
    )
    return parser


def make(arguments: argparse.Namespace) -> int:
    """Make the robustness set; returns the exit code."""
    from whisper_npu.scripts.evaluation.robustness import (  # noqa: PLC0415 - slow to import
        parts,
        read_utterances,
        write_set,
    )

    n_words = write_set(parts(read_utterances(arguments.references)), arguments.out)
    print(f"{n_words} words in {arguments.out}")
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(make, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
