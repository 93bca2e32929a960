"""Tasks: what a scene holds, when an episode has succeeded, and how a scripted expert does it."""
