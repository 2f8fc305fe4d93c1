"""Metrics for other libraries: LPIPS, ONNX and torch.export. Each file is verified with the library that reads it."""
