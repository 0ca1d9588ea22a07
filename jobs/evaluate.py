"""Measures scores against labels: what `ray job submit` runs on a cluster.

python jobs/evaluate.py --config jobs/evaluate.toml
"""

import sys

from effnet_batch.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
