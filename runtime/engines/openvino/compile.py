"""Compiles a model folder's graphs for one device, or loads them compiled from the cache.

The graphs are read, changed (elastic windows, states in the plugin, matrices in 8 bits), and
compiled. On a processor the results for the stateful cache are kept on disk, and a later start
reads no ONNX at all.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import openvino as ov

from whisper_npu.errors import DeviceError, ModelError
from whisper_npu.runtime.engines.choices import CacheKind
from whisper_npu.runtime.engines.compile_cache import LIMIT_VARIABLE, CompileCache, Contents
from whisper_npu.runtime.engines.compile_key import CacheKey, cache_key
from whisper_npu.runtime.engines.cpu_capabilities import processor
from whisper_npu.runtime.engines.kv_cache import is_self_attention
from whisper_npu.runtime.engines.memory import available_bytes, release_memory
from whisper_npu.runtime.engines.openvino import (
    cross_states,
    graphs,
    int8_weights,
    stateful,
    trio,
)
from whisper_npu.runtime.engines.openvino.alignment import shows_attention
from whisper_npu.runtime.engines.openvino.alignment_queries import expose_queries
from whisper_npu.runtime.engines.openvino.compile_config import Plan
from whisper_npu.runtime.engines.openvino.workarounds import one_thread
from whisper_npu.runtime.model_folder.cache_folder import CACHE_VARIABLE
from whisper_npu.runtime.model_folder.config import KVContract
from whisper_npu.runtime.model_folder.folder import ModelFolder

logger = logging.getLogger("whisper_npu")

RECIPE_REVISION = 5
"""In the cache's keys. Raise it if the same files would be compiled to other graphs, or facts get
another form: after an edit of this module, `alignment` (`shows_attention`), `alignment_queries`,
`cross_states`, `explicit_states`, `graphs`, `int8_weights`, `merged_decoder`, `stateful`, `trio` or
`uniform`. Otherwise graphs that an older version compiled would be used."""

_ELEMENT_TYPES = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}

_HINTS = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
_GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
# The graph of the folder that each compiled graph is made from. The decoder with past takes
# longest, so it comes first.
_SOURCES: dict[str, trio.Part] = {
    "with_past": "with_past",
    "encoder": "encoder",
    "cross": "decoder",
    "decoder": "decoder",
}
_WANTED: dict[CacheKind, tuple[str, ...]] = {
    "stateful": ("with_past", "encoder", "cross"),
    "concat": ("with_past", "encoder", "decoder"),
    "static": ("with_past", "encoder", "decoder"),
    "off": ("encoder", "decoder"),
}
_STATEFUL = _WANTED["stateful"]
_OF_WHOLE_WINDOWS = ("encoder", "cross")  # they are compute-bound, the decoder is memory-bound
_MEMORY_TO_KEEP = 4  # times the weights: the memory for writing compiled graphs to disk


@dataclass(frozen=True)
class GraphInfo:
    """Facts about a model's graphs, as they are after they have been changed.

    Attributes:
        dimensions: sizes of the model.
        contract: the content of `present.*`; None if it is not needed.
        elastic: whether the encoder takes windows of any length.
        is_int8: whether matrices are in 8 bits.
        heads: alignment heads, by layer and index, whose queries the decoder returns.
        shows_attention: whether the weights of the alignment heads can be read from the decoder.
        stored: `int8` or `int4` if the folder has matrices in that form; they stay so.
        options: compile options of the one graph that these facts are stored with, beside those of
            all graphs.
    """

    dimensions: graphs.GraphDimensions
    contract: KVContract | None
    elastic: bool
    is_int8: bool
    heads: tuple[tuple[int, int], ...] = ()
    shows_attention: bool = False
    stored: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def precision(self, compute_precision: str) -> str:
        """Return the name of the arithmetic, with `int8+` or `int4+` if matrices are in it.

        Stored matrices are named, too, if all arithmetic is in floating point.
        """
        if self.is_int8:
            return f"{self.stored or 'int8'}+{compute_precision}"
        return int8_weights.named_precision(compute_precision, self.stored)


@dataclass(frozen=True)
class Compiled:
    """Graphs that are ready to run: `encoder`, and the other graphs that the cache needs.

    Attributes:
        graphs: by name.
        info: facts about them.
    """

    graphs: dict[str, ov.CompiledModel]
    info: GraphInfo


@dataclass(frozen=True)
class _Store:
    """The cache of compiled graphs, and their keys in it."""

    cache: CompileCache
    keys: dict[str, CacheKey]


class GraphCompiler:
    """Compiles the graphs of a model folder."""

    def __init__(
        self, core: ov.Core, folder: ModelFolder, plan: Plan, progress: Callable[[str], None]
    ) -> None:
        """Compile nothing yet.

        Args:
            core: OpenVINO's.
            folder: the model.
            plan: the way to run it.
            progress: called with one line per graph that is compiled.
        """
        self._progress = progress
        self._core = core
        self._folder = folder
        self._plan = plan
        self._device = plan.request.device

    def compile(self, kept: CompileCache | None) -> Compiled:
        """Load compiled graphs, or compile them.

        Args:
            kept: the cache to look in and to store them in; None compiles now.

        Raises:
            ModelError: the folder's graphs cannot be used.
            DeviceError: the device refuses a graph.
        """
        if kept is None or kept.limit <= 0 or not self._plan.is_fast_path:
            return self._compile_all(None)
        store = _Store(kept, self._keys())
        compiled = self._load(store)
        if compiled is not None:
            return compiled
        return self._compile_all(store if self._has_room(kept) else None)

    def compile_one(self, model: ov.Model, file: str, **options: object) -> ov.CompiledModel:
        """Compile a graph.

        Raises:
            DeviceError: the device refuses it.
        """
        try:
            return self._core.compile_model(model, self._device, {**self._plan.config, **options})
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DeviceError(f"{self._device} cannot compile {file}: {reason}") from None

    def _has_room(self, kept: CompileCache) -> bool:
        """Whether there is room for compiled graphs, including those for streams."""
        size, name = self._folder.size, self._folder.name
        if 2 * size > kept.limit and not kept.is_soft:
            logger.info("%s: compiled graphs may not fit into %d MB", name, kept.limit / 1e6)
        elif _MEMORY_TO_KEEP * size > available_bytes():
            logger.info("%s: too little memory to keep compiled graphs", name)
        elif not kept.is_writable():
            logger.warning(
                "compiled graphs cannot be kept: %s cannot be written to; let %s name a folder "
                "that can, or set %s=0",
                kept.folder,
                CACHE_VARIABLE,
                LIMIT_VARIABLE,
            )
        else:
            return True
        return False

    def _keys(self) -> dict[str, CacheKey]:
        folder = self._folder
        heads = folder.alignment_heads
        identity = f"{folder.graphs_digest()}-{folder.kv_contract}-{heads}-{RECIPE_REVISION}"
        options = {
            **self._plan.config,
            "MATRICES": "int8" if self._plan.uses_int8 else "as they are",
            "PROCESSOR": processor(),
        }
        return {
            name: cache_key(self._core, f"{identity}-{name}", self._device, options)
            for name in _STATEFUL
        }

    def _load(self, store: _Store) -> Compiled | None:
        """Load all graphs from the cache; None if one of them is missing or unusable."""
        found = {name: _read_facts(store.cache.facts(key)) for name, key in store.keys.items()}
        infos = {name: info for name, info in found.items() if info is not None}
        if len(infos) < len(store.keys):
            return None

        def load(name: str) -> ov.CompiledModel | None:
            return self._load_one(store, name, infos[name])

        with ThreadPoolExecutor(max_workers=2) as loaders:
            loaded = dict(zip(infos, loaders.map(load, infos), strict=True))
        compiled = {name: graph for name, graph in loaded.items() if graph is not None}
        if len(compiled) < len(loaded):
            return None
        logger.debug("%s: compiled graphs from %s", self._folder.name, store.cache.folder)
        return Compiled(compiled, infos["encoder"])

    def _load_one(self, store: _Store, name: str, info: GraphInfo) -> ov.CompiledModel | None:
        options = {**self._plan.config, **info.options}
        return store.cache.load(self._core, store.keys[name], options)

    def _keep(
        self, store: _Store, name: str, compiled: ov.CompiledModel, info: GraphInfo
    ) -> ov.CompiledModel:
        """Store a compiled graph; return the graph to use.

        The weights of a large graph are then read from the stored file, and the compiled graph's
        own copy of them is released.
        """
        if self._keys() != store.keys:  # the files were replaced during compilation
            return compiled
        precision = self._plan.compute_precision
        contents = Contents(
            str(self._folder.path),
            trio.file_of(self._folder, _SOURCES[name]).stem,
            info.precision(precision),
        )
        is_stored = store.cache.store(store.keys[name], compiled, contents, asdict(info))
        loaded = None
        if is_stored and info.dimensions.is_large:
            loaded = self._load_one(store, name, info)
        release_memory()
        return compiled if loaded is None else loaded

    def _compile_all(self, store: _Store | None) -> Compiled:
        """Compile the graphs that the cache of past states needs.

        Args:
            store: where compiled graphs are kept; None keeps none.
        """
        info = self._read_info()

        wanted = _WANTED[self._plan.request.kv_cache]

        def compile_graph(name: str) -> ov.CompiledModel:
            number = wanted.index(name) + 1
            file = trio.file_of(self._folder, _SOURCES[name]).name
            self._progress(f"compiling {file} for {self._device}, {number} of {len(wanted)}")
            model = self._read_changed(name, info)
            options = self._round(model, name, info) if info.is_int8 else {}
            if self._plan.is_fast_path:
                graphs.transpose_weights(model)
            compiled = self.compile_one(model, file, **options)
            del model  # its weights are released before those of the next graph are read
            if store is None:
                return compiled
            return self._keep(store, name, compiled, replace(info, options=options))

        # A large graph needs several times its weights to be compiled: one after the other.
        with ThreadPoolExecutor(max_workers=1 if info.dimensions.is_large else 2) as compilers:
            compiled = dict(zip(wanted, compilers.map(compile_graph, wanted), strict=True))
        if info.contract is None and "with_past" in compiled:
            request = compiled["with_past"].create_infer_request()
            info = replace(info, contract=_contract_by_step(request, info.dimensions))
        return Compiled(compiled, info)

    def _read_info(self) -> GraphInfo:
        """Read the graphs' structure, and check that they belong together; read no weights."""
        found = encoder, decoder, with_past = trio.read_trio(self._core, self._folder)
        dimensions = graphs.read_dimensions(encoder, with_past)
        contract = self._known_contract(with_past)
        if contract is None and self._plan.request.kv_cache == "stateful":
            probe = self.compile_one(with_past, "the probe").create_infer_request()
            contract = _contract_by_step(probe, dimensions)
        heads = self._folder.alignment_heads if self._plan.is_fast_path else ()
        is_known = all(head < dimensions.n_text_head for _, head in heads)
        stored = int8_weights.stored_weights(found)
        return GraphInfo(
            dimensions=dimensions,
            contract=contract,
            elastic=graphs.make_elastic(encoder, dimensions.n_audio_ctx),
            is_int8=self._plan.uses_int8 and (bool(stored) or self._can_round(found)),
            heads=heads if is_known and expose_queries(with_past, heads) else (),
            shows_attention=shows_attention(self._folder, decoder),
            stored=stored,
        )

    def _read_changed(self, name: str, info: GraphInfo) -> ov.Model:
        """Read a graph with its weights, and change it for the cache of past states."""
        model = trio.read_part(self._core, self._folder, _SOURCES[name])
        trio.require_finite(trio.file_of(self._folder, _SOURCES[name]), model)
        element_type = _ELEMENT_TYPES[self._plan.compute_precision]
        if name == "encoder":
            graphs.make_elastic(model, info.dimensions.n_audio_ctx)
            return model
        if name == "cross":
            in_bf16 = self._plan.compute_precision == "bf16"
            return cross_states.cross_attention_projection(
                model, element_type, multiply_in_it=in_bf16 and self._plan.is_whole
            )
        graphs.keep_last_logits(model)
        if name == "with_past" and info.contract and self._plan.request.kv_cache == "stateful":
            cross_states.transpose_cross_states(
                model, element_type, multiply_in_it=self._plan.uses_int8
            )
            on_processor = self._device.startswith("CPU")
            stateful.make_stateful(model, info.contract, fuse=on_processor)
            if info.heads:
                expose_queries(model, info.heads)
            if info.is_int8 and self._plan.is_fast_path and element_type == ov.Type.bf16:
                # Half as much to write, and to read at each start. Done even if graphs are not
                # kept, so that the results are the same.
                int8_weights.narrow_tables(model)
        return model

    def _round(self, model: ov.Model, name: str, info: GraphInfo) -> dict[str, Any]:
        """Round a graph's matrices; return the options to compile it with."""
        options: dict[str, Any] = {}
        if name in _OF_WHOLE_WINDOWS:
            if self._plan.is_whole:
                return options
        else:
            # Activations are sure to be rounded only in f32 (`int8_weights`). The stateful cache's
            # products with cross-attention states have their own type (`cross_states`).
            options = {hint: "f32" for hint in _HINTS if hint in self._plan.config}
        attention = name != "encoder" or info.dimensions.is_large
        if int8_weights.round_products(model, attention=attention):
            options[_GROUP_SIZE] = int8_weights.GROUP
        return options

    def _can_round(self, models: Iterable[ov.Model]) -> bool:
        """Whether the graphs have matrices that can be in 8 bits.

        Raises:
            ModelError: they have none, though int8 was explicitly requested.
        """
        if any(map(int8_weights.has_matrices, models)):
            return True
        found = f"{self._folder.path} has no matrices that can be rounded to 8 bits"
        if self._plan.request.precision == "int8":
            raise ModelError(f"{found}; give --precision {self._plan.compute_precision}")
        logger.warning("%s: computing in %s", found, self._plan.compute_precision)
        return False

    def _known_contract(self, with_past: ov.Model) -> KVContract | None:
        """Return the content of `present.*`, if it is known without running the graph."""
        stated = self._folder.kv_contract
        contract = stated or graphs.detect_contract(with_past)
        if contract is not None:
            source = "manifest" if stated else "graph"
            logger.debug("KV contract: %s (from the %s)", contract, source)
        return contract


def _read_facts(content: dict[str, Any] | None) -> GraphInfo | None:
    """Return stored facts; None if they are missing or cannot be understood."""
    if content is None:
        return None
    try:
        dimensions = graphs.GraphDimensions(**content["dimensions"])
        heads = tuple((layer, head) for layer, head in content["heads"])
        info = GraphInfo(**{**content, "dimensions": dimensions, "heads": heads})
    except (KeyError, TypeError, ValueError):
        return None
    return info if isinstance(info.options, dict) else None


def _contract_by_step(request: ov.InferRequest, dimensions: graphs.GraphDimensions) -> KVContract:
    """Run one step on a past of two positions and look at the length of its states."""
    n_past, n_new = 2, 1
    d = dimensions
    for tensor in request.model_inputs:
        name = graphs.state_name(tensor)
        if name is None:
            request.set_tensor(tensor, ov.Tensor(np.zeros((1, n_new), np.int64)))
            continue
        length = n_past if is_self_attention(name) else d.n_audio_ctx
        zeros = np.zeros((1, d.n_text_head, length, d.head_dim), np.float32)
        request.set_tensor(tensor, ov.Tensor(zeros))
    with one_thread():
        request.infer()
    present = request.get_tensor("present.0.decoder.key")
    contract = graphs.contract_of(present.shape[2], n_past, n_new)
    logger.debug("KV contract: %s (from a probing step)", contract)
    return contract
