"""Programs that print figures; see README.md in this directory."""
