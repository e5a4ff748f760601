"""Models from files, the hub, the caller, or from nothing, with all that jobs need beside them."""
