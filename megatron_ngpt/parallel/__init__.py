"""How tensors lie over ranks: the rank grid, collectives as regions, sharded layers, and the map of what each rank holds."""
