"""Set up a machine: `setup` installs a requirements file into `.venv`, `browser` finds or installs Chromium."""
