"""`python -m buttress.training CONFIG`, and `torchrun --nproc-per-node N -m buttress.training CONFIG`."""

import sys

from buttress.execution.local_training import main

if __name__ == "__main__":
    sys.exit(main())
