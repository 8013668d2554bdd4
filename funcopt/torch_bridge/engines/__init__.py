"""What runs an update: XLA's compiled programs over torch's memory."""
