"""A watchdog beside every rank: a process of its own, which nothing that stops the rank stops. Its modules need Python alone."""
