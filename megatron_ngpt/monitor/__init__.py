"""What a run tells of itself: metrics, TensorBoard, progress, FLOPs and one log file a rank."""
