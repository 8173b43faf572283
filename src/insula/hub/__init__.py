"""Where models live: names, sources, the store, and what is already on this machine."""
