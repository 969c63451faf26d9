"""fastpump: a packet pump between multi-queue TUN interfaces and encrypted UDP.

The command line is `fastpump` (see `fastpump --help`). For embedding:

    from fastpump.config.model import TunnelConfig
    from fastpump.tunnel.run import run

Importing this package alone loads nothing else.
"""

__version__ = "0.1.0"
