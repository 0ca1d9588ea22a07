"""Embeds every image of an input: what `ray job submit` runs on a cluster.

python jobs/embed_images.py --config jobs/embed_images.toml
"""

import sys

from effnet_batch.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
