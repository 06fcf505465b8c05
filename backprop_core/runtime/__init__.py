"""What any part may need of the process it runs in: settings, redaction, subprocesses, optional packages."""
