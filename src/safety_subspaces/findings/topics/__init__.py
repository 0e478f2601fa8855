"""What is found, a module a topic: each has a function of its name from studies to findings."""
