"""What every test shares: few threads, read once by OpenMP when the first library that uses it is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
