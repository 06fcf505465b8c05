"""`python -m flows.cli`, where the script is not installed."""

import sys

from flows.cli import main

sys.exit(main())
