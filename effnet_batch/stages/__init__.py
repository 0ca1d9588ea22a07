"""Steps from sources to rows. No Ray in here: they run in a test, a notebook, a task or an actor."""
