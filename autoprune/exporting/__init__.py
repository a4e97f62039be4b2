"""From a finished candidate to an artefact folder, and back: export, verify, load."""
