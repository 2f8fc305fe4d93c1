"""Metrics for other libraries: LPIPS, ONNX and torch.export. Each file is read back by that library and compared."""
