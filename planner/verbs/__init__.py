"""The public verbs, a module each. They are imported from `planner`, where each is the function of the same name."""
