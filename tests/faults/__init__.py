"""What can go wrong during a run that takes days, done for real."""
