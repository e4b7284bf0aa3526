"""The feature browser: the same figures behind three doors: notebook, local app, exported page."""
