"""Exact float64 tensor algebra of affine operators and clips; it knows no graph."""
