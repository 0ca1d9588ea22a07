"""What scores are worth: metrics against labels, intervals, calibration, plots."""
