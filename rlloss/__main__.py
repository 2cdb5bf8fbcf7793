import sys

from rlloss.cli.main import main

sys.exit(main())
