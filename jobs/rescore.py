"""Judges videos again by their stored frames: what `ray job submit` runs on a cluster.

python jobs/rescore.py --config jobs/rescore.toml
"""

import sys

from effnet_batch.cli import main

if __name__ == "__main__":
    main(["rescore", *sys.argv[1:]])
