"""Trackers beside MLflow, each a reader of the journal with a cursor of its own: TensorBoard, W&B, OpenTelemetry."""
