"""What the globals of a pickle can do: tables of names, and a judgement of each."""

from __future__ import annotations

import re
from typing import Final, Literal

Judgement = Literal["runs-code", "unknown", "trainer", "plain"]

# Modules that run code, start programs, reach files or the network, or look up other globals.
_MODULES: Final = """
Cython IPython _asyncio _cffi_backend _compat_pickle _ctypes _distutils_hack _frozen_importlib
_frozen_importlib_external _imp _io _lsprof _operator _pickle _posixsubprocess _pytest _signal
_socket _sqlite3 _ssl _testcapi _thread _winapi _xxsubinterpreters accelerate.commands
accelerate.launchers aiohttp antigravity ast asyncio atexit bdb cPickle cProfile cffi cgi cgitb
cloudpickle cmd code codeop commands compileall concurrent contextlib copy_reg copyreg crypt
ctags ctypes dask datasets dbm deepspeed.launcher deepspeed.ops.op_builder dill dis distutils
doctest ensurepip fabric faulthandler fileinput fsspec ftplib gc genericpath glob gradio grp
http httplib httpx huggingface_hub idlelib imaplib imp importlib inspect invoke ipykernel jinja2
joblib._parallel_backends joblib.externals joblib.load joblib.memory joblib.numpy_pickle.load
joblib.parallel joblib.pool jsonpickle keras lib2to3 lightning.app linecache logging mako
marshal mlflow mmap msvcrt multiprocessing nbconvert nntplib nose nt ntpath numba
numpy.DataSource numpy.apply_along_axis numpy.ctypeslib numpy.distutils numpy.f2py
numpy.fromfile numpy.frompyfunc numpy.fromregex numpy.genfromtxt numpy.lib._datasource
numpy.lib._npyio_impl numpy.lib._utils_impl numpy.lib.format numpy.lib.npyio numpy.lib.utils
numpy.load numpy.loadtxt numpy.memmap numpy.save numpy.savetxt numpy.testing numpy.vectorize
operator os pandas.core.computation pandas.eval pandas.io pandas.read_pickle paramiko pdb
pexpect pickle pickletools pip pkg_resources pkgutil platform plumbum popen2 poplib posix
posixpath pprint profile psutil pty pwd py py_compile pyarrow pydoc pyrsistent pytest pyximport
ray readline requests resource rlcompleter runpy sched scipy.io scipy.weave select selectors
setuptools sh shelve shutil signal site sklearn.utils.fixes smart_open smtpd smtplib socket
socketserver spwd sqlite3 ssl subprocess sympy.parsing sympy.sympify symtable sys sysconfig
syslog tarfile telnetlib tempfile tensorflow test threading timeit tkinter tokenize torch._C
torch._dynamo torch._export torch._import_utils torch._inductor torch._sources
torch._utils_internal torch.classes torch.compile torch.cuda._utils torch.distributed.elastic
torch.distributed.launch torch.distributed.rpc torch.distributed.run torch.export torch.fx
torch.hub torch.jit torch.library torch.load torch.multiprocessing torch.onnx torch.ops
torch.package torch.profiler torch.save torch.serialization.load torch.serialization.save
torch.testing torch.utils._config_module torch.utils._freeze torch.utils.bottleneck
torch.utils.collect_env torch.utils.cpp_extension torch.utils.file_baton torch.utils.model_dump
torch.utils.model_zoo trace tracemalloc transformers.dynamic_module_utils
transformers.file_utils transformers.pipeline transformers.pipelines transformers.utils.hub
transformers.utils.import_utils tty turtle turtledemo types unittest urllib urllib2 urllib3
urlparse venv weakref webbrowser wheel winreg wsgiref xmlrpc xmlrpclib yaml zipapp zipimport
"""
_RUNS_CODE: Final = frozenset(_MODULES.split())

_BUILTINS: Final = ("builtins", "__builtin__")
# What an attribute of a harmless module must not be.
_LEADING: Final = _RUNS_CODE.union(_BUILTINS)

# Of a module above, what holds values only.
_HARMLESS: Final = frozenset(
    (
        *("types.SimpleNamespace", "types.MappingProxyType", "torch._C._nn.gelu"),
        *("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"),
        *("torch.utils.data.distributed.DistributedSampler", "torch._C.Generator"),
        *("torch.utils.data.sampler.RandomSampler", "torch.utils.data.sampler.SequentialSampler"),
    )
)

_VALUES: Final = frozenset(
    (
        *("set", "frozenset", "list", "dict", "tuple", "bytearray", "bytes", "complex", "int"),
        *("float", "str", "bool", "slice", "range", "xrange", "object", "unicode", "long"),
        *("Ellipsis", "NotImplemented", "None", "NoneType"),
    )
)
_ERRORS: Final = re.compile(r"[A-Z][A-Za-z]*(Error|Exception|Warning|Exit|Interrupt|Iteration)")

# Modules of which only a few names do not reach files or call what they are given.
_MIXED: Final = {
    "io": ("BytesIO", "StringIO"),
    "codecs": (),
    "functools": ("partial",),
    "itertools": ("count", "cycle", "chain"),
}

# What tensors, arrays and plain containers need.
_PLAIN: Final = re.compile(
    r"collections\.(OrderedDict|defaultdict|deque|Counter)"
    r"|torch\.(Size|Tensor|device|nn\.parameter\.(Parameter|Buffer)|(cuda\.)?[A-Za-z0-9]+Storage"
    r"|storage\.(TypedStorage|UntypedStorage|_TypedStorage|_UntypedStorage)"
    r"|(float|bfloat|int|uint|complex|qint|quint|float4_|float8_)[0-9a-z_]+|bool|half|double|long"
    r"|_utils\._rebuild_[a-z_0-9]+|_tensor\._rebuild_from_type_v2|serialization\._get_layout)"
    r"|numpy\.(_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)|ndarray|dtype"
    r"|dtypes\.[A-Za-z0-9]+DType|(bool|int|uint|float|complex)[0-9_]*|str_|bytes_|random\.[a-z_]+"
    r"\.(__)?([A-Z][A-Za-z0-9]*|[a-z_]*_ctor))"
    r"|_codecs\.encode|codecs\.encode",
    re.ASCII,
)

# What trainers write beside weights: settings, counters, states of optimisers and of sampling.
_TRAINER: Final = re.compile(
    r"argparse\.Namespace|deepspeed\.utils\.tensor_fragment\.fragment_address|types\.SimpleNamespace|types\.MappingProxyType"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|uuid\.(UUID|SafeUUID)|decimal\.Decimal"
    r"|datetime\.(datetime|date|time|timedelta|timezone)|fractions\.Fraction|random\.Random"
    r"|copy_?reg\._reconstructor|copyreg\.__newobj__"
    r"|(transformers\.(training_args|trainer|integrations|debug_utils|optimization|utils\.generic)"
    r"|trl|peft|accelerate\.(state|utils|optimizer|scheduler)"
    r"|deepspeed\.(runtime|utils|moe|checkpoint|inference\.config)"
    r"|(pytorch_lightning|lightning|lightning_fabric|lightning_utilities)"
    r"|torch\.(optim|amp|cuda\.amp|distributed|nn\.modules|utils\.data\.(sampler|distributed))"
    r"|torchmetrics|omegaconf|hydra|megatron|apex|bitsandbytes|llava|vita|tokenizers"
    r"|torch_xla)[A-Za-z0-9_.]*\._*[A-Z][A-Za-z0-9_]*"
    r"|torch\.(strided|sparse_coo|preserve_format|contiguous_format|channels_last|layout"
    r"|memory_format|_C\.Generator|distributed\.[a-z_.]+\._[A-Z][A-Za-z_]+)",
    re.ASCII,
)

# What torch.load takes with weights_only, as of torch 2.13, and with it torch.distributed.tensor.
_ADMITTED: Final = re.compile(
    r"_codecs\.encode|collections\.(Counter|OrderedDict)"
    r"|(builtins|__builtin__)\.(bytearray|complex|set)"
    r"|torch\.(Size|Tensor|device|nn\.parameter\.Parameter|serialization\._get_layout"
    r"|storage\.(TypedStorage|UntypedStorage)|_tensor\._rebuild_from_type_v2"
    r"|_utils\._rebuild_((parameter|tensor|nested_tensor|qtensor|sparse_tensor|wrapper_subclass)"
    r"|parameter_with_state|tensor_v[23]|meta_tensor_no_storage"
    r"|device_tensor_from_(numpy|cpu_tensor))"
    r"|bool|bfloat16|bits(16|1x8|2x4|4x2|8)|complex(32|64|128)|float(16|32|64)"
    r"|float8_(e4m3fn|e4m3fnuz|e5m2|e5m2fnuz|e8m0fnu)|float4_e2m1fn_x2"
    r"|u?int([1-8]|16|32|64)|q(u?int8|int32|uint2x4|uint4x2)"
    r"|per_(channel|tensor)_(affine|symmetric|affine_float_qparams)"
    r"|(cuda\.)?(sparse\.)?(BFloat16|Bool|Byte|Char|Double|Float|Half|Int|Long|Short)Tensor"
    r"|(cuda\.)?(BFloat16|Bool|Byte|Char|ComplexDouble|ComplexFloat|Double|Float|Half|Int|Long"
    r"|QInt32|QInt8|QUInt2x4|QUInt4x2|QUInt8|Short)Storage"
    r"|nested\._internal\.nested_tensor\.(NestedTensor|_rebuild_njt)"
    r"|distributed\.(device_mesh\.DeviceMesh|_mesh_layout\._(Flat|Mesh)Layout|tensor\.(DTensor"
    r"|_dtensor_spec\.(DTensorSpec|ShardOrderEntry|TensorMeta)"
    r"|placement_types\.(Partial|Replicate|Shard|_StridedShard))))",
    re.ASCII,
)


def is_admitted(module: str, name: str) -> bool:
    """Return whether ``torch.load(weights_only=True)`` takes this global."""
    return _ADMITTED.fullmatch(f"{module}.{name}") is not None


def judge(module: str, name: str) -> Judgement:
    """Return what a pickle could do with the global ``name`` of ``module``.

    ``name`` may have dots: then attributes of attributes are looked up, which may lead from a
    harmless module to what it has imported.
    """
    whole = f"{module}.{name}"
    root = module.partition(".")[0]
    if whole in _HARMLESS or _PLAIN.fullmatch(whole):
        return "trainer" if whole in _HARMLESS else "plain"
    if root in _BUILTINS or module == "exceptions":
        return "plain" if name in _VALUES or _ERRORS.fullmatch(name) else "runs-code"
    if root in _MIXED:
        return "unknown" if name in _MIXED[root] else "runs-code"
    parts = name.split(".")
    leads_on = any(_leads_on(part) for part in parts) or any(map(_is_no_class, parts[:-1]))
    if leads_on or any(_is_below(whole, length) for length in range(whole.count(".") + 2)):
        return "runs-code"
    return "trainer" if len(parts) == 1 and _TRAINER.fullmatch(whole) else "unknown"


def _is_below(whole: str, length: int) -> bool:
    return ".".join(whole.split(".")[:length]) in _RUNS_CODE


def _leads_on(part: str) -> bool:
    """Return whether an attribute is a module that runs code, under whatever private name."""
    return {part, part.strip("_")} & _LEADING != set() or _is_inner(part)


def _is_no_class(part: str) -> bool:
    """Return whether what is looked up in an attribute is looked up in a module or an object.

    What pickle itself writes with dots are classes in classes.
    """
    return not part.lstrip("_")[:1].isupper()


def _is_inner(part: str) -> bool:
    """Return whether an attribute is one that leads from an object to the interpreter."""
    return (
        part.startswith("__")
        and part not in ("__RandomState_ctor", "__newobj__")
        and (part.endswith("__"))
    )
