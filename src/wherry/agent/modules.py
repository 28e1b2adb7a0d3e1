"""
Which distribution has a module, where the names differ.

Called by ``agent.causes``, for a module that was missing in a run, and by ``sdk.preflight``, for
one that will be. Pure data.
"""

from __future__ import annotations

#: module → the distribution that has it; only where it is not the module's own name
DISTRIBUTIONS = {
    "Bio": "biopython", "Crypto": "pycryptodome", "IPython": "ipython", "MySQLdb": "mysqlclient",
    "OpenSSL": "pyopenssl", "PIL": "pillow", "attr": "attrs", "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless", "dateutil": "python-dateutil", "docx": "python-docx",
    "dotenv": "python-dotenv", "fitz": "pymupdf", "git": "gitpython", "google.protobuf": "protobuf",
    "hydra": "hydra-core", "jose": "python-jose", "jwt": "pyjwt", "ldap": "python-ldap",
    "lightning_fabric": "lightning", "magic": "python-magic", "mpl_toolkits": "matplotlib",
    "osgeo": "gdal", "pkg_resources": "setuptools", "psycopg2": "psycopg2-binary",
    "pydantic_settings": "pydantic-settings", "pylab": "matplotlib",
    "pytorch_lightning": "pytorch-lightning", "rest_framework": "djangorestframework",
    "segmentation_models_pytorch": "segmentation-models-pytorch", "serial": "pyserial",
    "skimage": "scikit-image", "sklearn": "scikit-learn", "skopt": "scikit-optimize",
    "slugify": "python-slugify", "snappy": "python-snappy", "socks": "pysocks",
    "tf_keras": "tf-keras", "umap": "umap-learn", "usb": "pyusb", "win32api": "pywin32",
    "yaml": "pyyaml", "zmq": "pyzmq",
}  # fmt: skip

#: Other distributions that have the module too.
ALSO = {
    "Crypto": ("pycrypto",),
    "PIL": ("pillow-simd",),
    "cupy": (
        "cupy-cuda11x",
        "cupy-cuda12x",
        "cupy-cuda13x",
    ),
    "cv2": (
        "opencv-python",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "faiss": (
        "faiss-cpu",
        "faiss-gpu",
        "faiss-gpu-cu12",
    ),
    "google": ("protobuf", "googleapis-common-protos"),
    "keras": ("keras-nightly",),
    "lightning_fabric": ("pytorch-lightning",),
    "mxnet": (
        "mxnet-cu112",
        "mxnet-mkl",
    ),
    "onnxruntime": ("onnxruntime-gpu",),
    "pytorch_lightning": ("lightning",),
    "tensorboard": ("tb-nightly",),
    "tensorflow": (
        "tensorflow-cpu",
        "tensorflow-gpu",
        "tensorflow-intel",
        "tensorflow-macos",
        "tf-nightly",
    ),
    "torch": ("pytorch",),
    "xgboost": ("xgboost-cpu",),
}


def distribution(module: str) -> str:
    """The name to install a module by, as far as is known: the module's own otherwise."""
    top = module.partition(".")[0]
    return DISTRIBUTIONS.get(module) or DISTRIBUTIONS.get(top) or top
