"""The named patterns. Each says what it means in `visible`, and the same as key intervals in `ranges`."""

from .blocks import BlockCausal, BlockDiffusion, Chunked
from .documents import Document
from .function import Function, from_function
from .heads import PerHead
from .named import MAX_INTEGER
from .plain import Bidirectional, Causal
from .prefix import Gist, PrefixLM
from .segments import ParallelContext, SharedPrefix
from .tree import Tree
from .windows import Dilated, GlobalTokens, Sink, SlidingWindow


__all__ = [
    "MAX_INTEGER",
    "Bidirectional",
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "Chunked",
    "Dilated",
    "Document",
    "Function",
    "Gist",
    "GlobalTokens",
    "ParallelContext",
    "PerHead",
    "PrefixLM",
    "SharedPrefix",
    "Sink",
    "SlidingWindow",
    "Tree",
    "from_function",
]
