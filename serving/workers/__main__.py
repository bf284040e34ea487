"""The program of a worker, which its parent starts."""

import sys

from serving.app import create_app
from serving.workers.worker import run_worker

if __name__ == "__main__":
    sys.exit(run_worker(lambda settings, private_url: create_app(settings, private_url=private_url)))
