"""The errors of this package.

    WhisperNpuError
    ├── UsageError         options or arguments that cannot work (exit code 2)
    ├── AudioError         one recording cannot be read (exit code 1; a batch goes on)
    │   ├── AudioInputError a UsageError too: the object given as audio is of no known kind
    │   └── GibberishError the model writes nothing but repetitions
    ├── OutputError        a result cannot be written (exit code 1; a batch goes on)
    ├── ModelError         the model folder cannot be used (exit code 3)
    ├── DeviceError        the device cannot be used (exit code 3)
    ├── AssetError         a built-in asset cannot be fetched (exit code 3)
    ├── CheckpointError    the source of an export cannot be read (exit code 3)
    └── ExportError        the export did not succeed (exit code 3)
        └── ParityError    the exported graphs differ from PyTorch

Each message is one line that names the error, the file or option, and what to do.
"""


class WhisperNpuError(Exception):
    """Base of all errors of this package; its text is meant for the user."""

    exit_code = 3


class UsageError(WhisperNpuError):
    """Options or arguments that cannot work together or with this model."""

    exit_code = 2


class AudioError(WhisperNpuError):
    """A recording that cannot be read or that holds no usable audio."""

    exit_code = 1


class AudioInputError(AudioError, UsageError):
    """An object that is no audio: of a wrong type, or an array of a wrong shape or dtype.

    The mistake is the program's, but it concerns one recording only: the others of a batch go on.
    """


class GibberishError(AudioError):
    """A recording for which the model writes nothing but repetitions."""


class OutputError(WhisperNpuError):
    """A result that cannot be written to its place."""

    exit_code = 1


class ModelError(WhisperNpuError):
    """A model folder that is missing, incomplete or inconsistent."""


class DeviceError(WhisperNpuError):
    """A device that is missing or cannot run the model."""


class AssetError(WhisperNpuError):
    """A built-in model or recording that cannot be fetched or verified."""


class CheckpointError(WhisperNpuError):
    """A checkpoint that cannot be found, read or recognised as a Whisper model."""


class ExportError(WhisperNpuError):
    """An export that did not produce a usable model folder."""


class ParityError(ExportError):
    """Exported graphs that do not reproduce the PyTorch model."""
