"""The unit hypersphere: its geometry, and the one place where weights return to it, wherever their masters lie."""
