"""The example project is run as one, by test_project.py, not with our own fixtures around it."""

collect_ignore = ["project"]
