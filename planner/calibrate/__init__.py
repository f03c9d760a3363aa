"""Time of one kernel call from its shape: the law, the work of each class, tables of timings, and the fit."""
