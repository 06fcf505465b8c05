"""Settings, redaction of secrets, URL checks, subprocesses, optional packages."""
