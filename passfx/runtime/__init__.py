"""Running ONNX files; the only room that imports onnxruntime."""
