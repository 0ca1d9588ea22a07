"""Trains a forgery classifier on labelled videos: what `ray job submit` runs on a cluster.

python jobs/finetune.py --config jobs/finetune.toml
"""

import sys

from effnet_batch.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
