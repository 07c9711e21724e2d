"""Proofs on numbers: of a rewrite (`certificate`), of a whole program (`parity`); no ONNX here."""
