"""One gate, one file: a pure function of evidence and its settings."""
