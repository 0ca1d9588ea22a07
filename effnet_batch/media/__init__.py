"""Bytes to arrays: decoding and preprocessing, shared by training and inference."""
