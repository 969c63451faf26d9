"""Errors outside the packet path. Each message says what to do."""


class FastpumpError(Exception):
    """The operator's to solve: the command line prints its text alone."""


class ConfigError(FastpumpError):
    """A value that the operator gave cannot be used."""


class SystemSetupError(FastpumpError):
    """The system refused something that the tunnel needs."""


def invalid(what: str, text: str, expected: str) -> ConfigError:
    """The one form of "this text is not a WHAT"."""
    return ConfigError(f"invalid {what} {text!r}: must be {expected}")
