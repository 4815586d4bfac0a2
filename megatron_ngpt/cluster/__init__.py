"""`ngpt preflight`: what may be wrong on and between the hosts of a hostfile, found before ranks are started on them.

A probe runs on every host, over ssh, and answers questions; the judge compares the answers; then the hosts meet as ranks do, one rank a
host, and measure the links between them.
"""
