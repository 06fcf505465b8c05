"""Small data and a small base: what the demo trains on, and the recipes that made it."""
