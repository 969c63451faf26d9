"""`python -m fastpump`."""

import sys

from fastpump.cli.main import main

sys.exit(main())
