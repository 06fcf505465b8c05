"""Curation steps: one module each. `order` names them in the order in which they run."""
