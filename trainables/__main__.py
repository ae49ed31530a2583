"""`python -m trainables CONFIG`, and `torchrun --nproc-per-node N -m trainables CONFIG`."""

import sys

from trainables.launch import main

if __name__ == "__main__":
    sys.exit(main())
