"""The typed exceptions a user may meet.

Each message is one sentence that says what came and what is accepted; the command line prints it and exits with
code 2. Anything else that escapes is a bug of ours and keeps its traceback.
"""


class TudsrError(Exception):
    """Base of every error that a user can mend."""


class InputError(TudsrError):
    """A picture, a path, a size or an option that cannot be used."""


class ModelError(TudsrError):
    """A model folder or hub id that cannot be loaded, or whose files are not what they claim to be."""


class ConfigError(TudsrError):
    """A configuration value that is unknown, of the wrong type or out of range."""


class DataError(TudsrError):
    """A folder of photos that cannot be trained on."""


class StoppedError(TudsrError):
    """A training run that was asked to stop before its last step, and can be resumed."""


class WeightsError(TudsrError):
    """Pretrained weights of a loss, metric or discriminator that are missing or damaged."""


def cause(error: Exception) -> str:
    """Return what a library's error says first, to stand within a sentence; the rest is often a page."""
    lines = str(error).split("\n")
    first = lines[:2] if lines[0].endswith(":") else lines[:1]  # «Error(s) in loading …:» says nothing yet
    return " ".join(" ".join(first).split()).rstrip(" .:;") or type(error).__name__
