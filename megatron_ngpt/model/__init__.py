"""The decoder: attention, feed-forward, the two kinds of block, one layer list, and its assembly as a module or a pipeline.

Tensor names carry their shape: B batch, T sequence (of this rank, where activations are split along it), D hidden, H query heads
here, G key/value heads here, K head size, F feed-forward width here, V vocabulary entries here.
"""
