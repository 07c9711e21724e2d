"""What passfx is used for: one use case a file, each readable from top to bottom."""
