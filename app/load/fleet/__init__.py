"""Fleet: several engines behind one gateway."""
