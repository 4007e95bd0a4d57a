"""A page on this machine to draw on, or to drop pictures on, and what checkpoints say of them (extra: app)."""
