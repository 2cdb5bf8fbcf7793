import sys

from rlloss.cli import main

sys.exit(main())
