"""The Ray Data graphs and the runs around them."""
