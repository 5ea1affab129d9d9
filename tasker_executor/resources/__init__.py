"""Ready-made factories, a module for each driver; nothing is imported before it is asked for."""
