"""What a GPU makes of this project, in five parts and a quarter of an hour: ``python -m benchmarks.gpu --out FOLDER``.

The machine needs PyTorch, Triton, Transformers and pytest, and the few pure or small packages that
``scripts/gpu_check.sh`` brings along; neither Ray, vLLM, Polars, MLflow nor Arrow.
"""
