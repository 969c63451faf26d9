"""What can go wrong outside the packet path. Each message says what to do."""


class FastpumpError(Exception):
    """The operator's to solve: the command line prints its text alone."""


class ConfigError(FastpumpError):
    """A value that somebody typed is not usable."""


class SystemSetupError(FastpumpError):
    """The system refused something that the tunnel needs."""
