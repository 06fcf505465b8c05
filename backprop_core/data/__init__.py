"""Sources and row formats, curation, splits, chat encoding, token cache, batching."""
