"""`python -m upwell` is the command `upwell`."""

import sys

from upwell.cli import main

sys.exit(main())
