"""Steps from sources to rows. No Ray here: they run in a test, a notebook, a task, an actor."""
