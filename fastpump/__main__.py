"""`python -m fastpump`."""

import sys

from fastpump.cli import main

sys.exit(main())
