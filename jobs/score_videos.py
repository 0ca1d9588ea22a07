"""Judges every video of an input: what `ray job submit` runs on a cluster.

python jobs/score_videos.py --config jobs/score_videos.toml
"""

import sys

from effnet_batch.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
