"""What a run costs, from the table of parameters and the recipe alone: numbers of parameters and FLOPs (`work`), where a pipeline is
cut (`stages`), bytes of memory by component (`memory`), bytes that collectives move (`traffic`). `ngpt check` tells them; tests hold
them against what torch counts and its allocator gives out.
"""
