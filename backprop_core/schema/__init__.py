"""Specs (user configuration), refs (stored artifacts), records, results, and their field types."""
