"""From files to batches: sources, row formats, curation, splits, chat encoding, token cache, batching."""
