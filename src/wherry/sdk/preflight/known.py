"""
What is known of modules without looking: which came and went with a Python, which are somebody's.

Called by ``sdk.preflight.imports``. Pure data.
"""

from __future__ import annotations

#: modules that left the standard library, and the minor version of Python 3 that has them no more
REMOVED = {
    "asynchat": 12, "asyncore": 12, "distutils": 12, "imp": 12, "smtpd": 12,
    "aifc": 13, "audioop": 13, "cgi": 13, "cgitb": 13, "chunk": 13, "crypt": 13, "imghdr": 13,
    "mailcap": 13, "msilib": 13, "nis": 13, "nntplib": 13, "ossaudiodev": 13, "pipes": 13,
    "sndhdr": 13, "spwd": 13, "sunau": 13, "telnetlib": 13, "uu": 13, "xdrlib": 13,
}  # fmt: skip
#: and those that came later than 3.9
ADDED = {"tomllib": 11, "annotationlib": 14, "compression": 14}

#: modules that have the name of their distribution and no other: where that is not in the lock,
#: neither are they
OWN_NAME = frozenset((
    "accelerate", "aiohttp", "albumentations", "altair", "anthropic", "boto3", "catboost",
    "chainer", "click", "comet_ml", "cupy", "dash", "dask", "datasets", "deepspeed",
    "diffusers", "django", "duckdb", "einops", "evaluate", "fairseq", "fastai", "fastapi",
    "flask", "flax", "gensim", "gradio", "gym", "gymnasium", "h5py", "horovod", "httpx",
    "imageio", "joblib", "keras", "kornia", "langchain", "librosa", "lightgbm", "lightning",
    "lxml", "matplotlib", "mlflow", "monai", "mpi4py", "mxnet", "neptune", "networkx", "nltk",
    "numba", "numpy", "onnx", "onnxruntime", "openai", "openpyxl", "optax", "optuna", "pandas",
    "peft", "pillow", "plotly", "polars", "prefect", "psutil", "pyarrow", "pydantic", "pymongo",
    "pyspark", "pytest", "ray", "redis", "requests", "rich", "s3fs", "safetensors", "scipy",
    "seaborn", "sentencepiece", "shap", "spacy", "sqlalchemy", "statsmodels", "streamlit",
    "sympy", "tensorboard", "tensorboardX", "tensorflow", "timm", "tokenizers", "torch",
    "torchaudio", "torchmetrics", "torchvision", "tqdm", "transformers", "trl", "typer",
    "ultralytics", "wandb", "xarray", "xgboost",
))  # fmt: skip

#: variables that a run's environment has anyway
PROVIDED = frozenset((
    "CUDA_VISIBLE_DEVICES", "GROUP_RANK", "HOME", "HOSTNAME", "LANG", "LOCAL_RANK",
    "LOCAL_WORLD_SIZE", "LOGNAME", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "PATH",
    "PWD", "PYTHONPATH", "RANK", "SHELL", "TF_CONFIG", "TMPDIR", "USER", "VIRTUAL_ENV",
    "WORLD_SIZE",
))  # fmt: skip
PROVIDED_PREFIXES = (
    "WHERRY_", "DMLC_", "JAX_", "PET_", "OMPI_", "PMI", "TORCHELASTIC_", "SLURM_",
)  # fmt: skip

#: programs that run a script as Python would
LAUNCHERS = (
    "accelerate", "deepspeed", "env", "horovodrun", "mpiexec", "mpirun", "nice", "numactl", "time",
    "torchrun", "uv",
)  # fmt: skip
