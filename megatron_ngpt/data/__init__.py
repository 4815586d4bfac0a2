"""Token datasets in Megatron's MMIDIDX layout, the order of samples, blending, and the batches a step trains on."""
