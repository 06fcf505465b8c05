"""The library: data, tensors, files. It knows neither Prefect nor MLflow."""
