"""`python -m buttress.training CONFIG`, and `torchrun --nproc-per-node N -m buttress.training CONFIG`."""

import sys

from buttress.training.local_run import main

if __name__ == "__main__":
    sys.exit(main())
