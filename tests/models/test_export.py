"""Exported models on stock transformers, in a second process without the fork: the same results, or a refusal."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_exported import REAL, backends
from small_models import DENSE, TREE, make_model
from torch import Tensor

from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen3ForCausalLM,
)
from transformers.mask_patterns import Causal, Document, PerHead, Sink, SlidingWindow, from_function
from transformers.mask_patterns.bundle import bundle
from transformers.mask_patterns.config import WARNING, ConfigPattern, for_file
from transformers.mask_patterns.export import export_for_stock


SCRIPT = Path(__file__).with_name("run_exported.py")
TOKENIZER = Path(__file__).resolve().parents[2] / "examples/tiny_qwen3/model"
SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
TOKENS = torch.arange(3, 21).view(2, 9)
STREAMING = Sink(1) | SlidingWindow(3)
PATTERNS: dict[str, Any] = {
    "qwen2": {0: STREAMING, 1: "native"},
    "qwen3": {0: PerHead({0: STREAMING, 1: "causal & ~sink(1)"}), 1: "chunked(4)"},
}


def run(tree: Path, modules: Path, *arguments: Any) -> str:
    """Run Python in a process of its own, with transformers from `tree`; what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"HF_MODULES_CACHE": str(modules), "TRANSFORMERS_VERBOSITY": "warning"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def computed(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What `run_exported` finds: by the fork, by stock, and by the fork in what stock saved again."""
    folder = tmp_path_factory.mktemp("computed")
    for family in DENSE:
        export_for_stock(make_model(family, mask_pattern=PATTERNS[family]), folder / family)
    exported, again = ([folder / f"{family}{end}" for family in DENSE] for end in ("", "_again"))
    run(upstream, folder / "stock_modules", SCRIPT, upstream, *exported)
    run(TREE, folder / "fork_modules", SCRIPT, TREE, *exported, *again)
    return {str(file.relative_to(folder)): torch.load(file) for file in folder.glob("*/*.pt")}


@pytest.mark.parametrize("family", DENSE)
def test_stock_computes_what_the_fork_computes(family: str, computed: Any, ids: Tensor) -> None:
    fork, stock, again = (computed[f"{family}{name}"] for name in ("/fork.pt", "/stock.pt", "_again/fork.pt"))
    assert list(fork) == list(stock) == list(again)
    assert [name for name in fork if not torch.equal(fork[name], stock[name])] == []
    assert [name for name in fork if not torch.equal(fork[name], again[name])] == []
    with torch.no_grad():
        assert torch.equal(stock["sdpa none one"], make_model(family, mask_pattern=PATTERNS[family])(ids).logits)
    assert not torch.allclose(stock["sdpa none one"], stock["sdpa none native"], atol=1e-2)
    real = torch.tensor(REAL["left"]).bool()
    for backend in backends(PATTERNS[family]):  # the mask is in force, and padding does not move it
        assert torch.allclose(stock[f"{backend} left one"][0], stock[f"{backend} none one"][0], atol=1e-4)
        assert torch.allclose(stock[f"{backend} left two parts"][real], stock[f"{backend} left one"][real], atol=1e-4)


TOGETHER = {"one": STREAMING, "other": Causal() & ~Sink(1)}
LOAD_TOGETHER = """
import sys, torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
one, other = (AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:3])
instance = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
instance.get_mask_pattern = lambda input_ids, **inputs: "causal & ~sink(1)"

class Subclass(type(one)):
    def get_mask_pattern(self, input_ids, **inputs):
        return "causal & ~sink(1)"

models = {"one": one, "other": other, "instance": instance, "subclass": Subclass.from_pretrained(sys.argv[1])}
ids, found = torch.load(sys.argv[3]), {}
for backend in ("eager", "sdpa"):
    for name, model in models.items():
        model.eval().set_attn_implementation(backend)
        with torch.no_grad():
            found[f"{backend} {name}"] = model(ids).logits
            found[f"{backend} {name} base"] = model.lm_head(model.model(ids).last_hidden_state)
torch.save(found, sys.argv[4])
"""


@pytest.fixture(scope="module")
def together(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Logits of the models that stock loads from two folders in one process, by backend and model."""
    folder = tmp_path_factory.mktemp("together")
    for name, pattern in TOGETHER.items():
        export_for_stock(make_model(mask_pattern=pattern), folder / name)
    torch.save(TOKENS, folder / "ids.pt")
    files = [folder / name for name in ("one", "other", "ids.pt", "found.pt")]
    run(upstream, folder / "modules", "-c", LOAD_TOGETHER, *files)
    found: dict[str, Tensor] = torch.load(folder / "found.pt")
    return found


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("loaded", "says"), [("one", "one"), ("other", "other"), ("instance", "other"), ("subclass", "other")]
)
def test_models_of_two_folders_and_their_subclasses_say_their_own_masks(
    loaded: str, says: str, backend: str, together: dict[str, Tensor]
) -> None:
    model = make_model(mask_pattern=TOGETHER[says])
    model.set_attn_implementation(backend)
    with torch.no_grad():
        expected = model(TOKENS).logits
    for called in (f"{backend} {loaded}", f"{backend} {loaded} base"):
        assert torch.equal(together[called], expected)


REFUSED = [
    ("exported", "AutoConfig.from_pretrained(folder)", "trust_remote_code=True"),
    ("exported", "AutoModelForCausalLM.from_pretrained(folder)", "trust_remote_code=True"),
    ("exported", "pipeline('text-generation', model=folder)", "trust_remote_code=True"),
    ("exported", "Qwen3ForCausalLM.from_pretrained(folder)", "stock transformers would ignore it"),
    ("saved", "AutoModelForCausalLM.from_pretrained(folder)", "stock transformers would ignore it"),
    ("saved", "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)", "would ignore it"),
    ("saved", "Qwen3ForCausalLM.from_pretrained(folder, attn_implementation='sdpa')", "would ignore it"),
    ("saved", "pipeline('text-generation', model=folder)", "stock transformers would ignore it"),
    ("nested", "AutoModelForImageTextToText.from_pretrained(folder)", "stock transformers would ignore it"),
    ("nested", "LlavaConfig.from_pretrained(folder)", "stock transformers would ignore it"),
]
GENERATE = "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).generate"
WHOLE = "on stock transformers, generate() of an exported model takes no 3D or 4D mask"
REFUSED += [
    ("exported", f"{GENERATE}(ids, attention_mask=torch.ones(1, 1, 4, 4))", WHOLE),
    ("exported", f"{GENERATE}(ids, attention_mask=torch.ones(1, 4, 4))", WHOLE),
    ("exported", f"{GENERATE}(inputs_embeds=torch.ones(1, 4, 32), attention_mask=torch.ones(1, 1, 4, 4))", WHOLE),
    (
        "exported",
        f"{GENERATE}(ids, generation_config=GenerationConfig(mask_pattern='causal'))",
        "Nothing reads it here",
    ),
    ("exported", f"{GENERATE}_batch([[3, 4]])", "continuous batching"),
    (
        "exported",
        f"{GENERATE}(ids, mask_pattern='causal & document(separator=1)', pad_token_id=1)",
        "expected a mask that says which 1 are padding",
    ),
]
LOADED = [
    ("exported", "pipeline('text-generation', model=folder, trust_remote_code=True)", "TextGenerationPipeline"),
    ("exported", "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)", "Qwen2Tokenizer"),
]
TRY_ALL = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers import GenerationConfig, LlavaConfig, Qwen3ForCausalLM, pipeline

ids = torch.ones(1, 4).long()

def said(folder, load):
    try:
        return type(eval(load)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"

asked = json.loads(sys.argv[1])
print(json.dumps([said(*question) for question in asked]))
"""


@pytest.fixture(scope="module")
def stock_said(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What stock transformers answers, by folder and call: the type that it loaded, or its error."""
    folder = tmp_path_factory.mktemp("models")
    model, tokenizer = make_model(mask_pattern=STREAMING), AutoTokenizer.from_pretrained(TOKENIZER)
    export_for_stock(model, folder / "exported", tokenizer)
    model.save_pretrained(folder / "saved")
    make_llava(mask_pattern=STREAMING).save_pretrained(folder / "nested")
    tokenizer.save_pretrained(folder / "saved")
    questions = [(saved, load) for saved, load, _ in REFUSED + LOADED]
    asked = json.dumps([(str(folder / saved), load) for saved, load in questions])
    printed = run(upstream, folder / "modules", "-c", TRY_ALL, asked)
    return dict(zip(questions, json.loads(printed.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("saved", "load", "reason"), REFUSED)
def test_stock_refuses_to_run_another_mask(
    saved: str, load: str, reason: str, stock_said: dict[tuple[str, str], str]
) -> None:
    answer = stock_said[saved, load]
    assert "Error: " in answer
    assert reason in answer


FLASH_LIKE_SDPA = """
import sys, pytest, torch
sys.path.insert(0, sys.argv[2])
import flash_reference
from transformers import AutoModelForCausalLM

calls = flash_reference.install(pytest.MonkeyPatch())
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids, logits = torch.arange(3, 21).view(2, 9), []
data = {"mask_inputs": {"document_ids": torch.tensor([[0] * 4 + [1] * 5, [0] * 2 + [1] * 7])}}
for name in ("sdpa", "flash_attention_2", "flash_attention_3"):
    model.config._attn_implementation = name
    for pattern, given in (("native", {}), ("sliding_window(3)", {}), ("causal & document", data)):
        with torch.no_grad():
            logits.append(model(ids, mask_pattern=pattern, **given).logits)
assert len(calls.whole) == 8 and len(calls.packed) == 4
for i in range(3):
    assert torch.allclose(logits[i], logits[i + 3], atol=2e-5) and torch.allclose(logits[i], logits[i + 6], atol=2e-5)
"""


def test_stock_tells_flash_attention_what_the_fork_tells_it(upstream: Path, tmp_path: Path) -> None:
    export_for_stock(make_model(mask_pattern=Causal()), tmp_path / "exported")
    run(upstream, tmp_path / "modules", "-c", FLASH_LIKE_SDPA, tmp_path / "exported", SCRIPT.parent)


@pytest.mark.parametrize(("saved", "load", "kind"), LOADED)
def test_stock_takes_an_exported_folder_when_told_to_trust_it(
    saved: str, load: str, kind: str, stock_said: dict[tuple[str, str], str]
) -> None:
    assert stock_said[saved, load] == kind


@pytest.mark.parametrize("layers", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}])
def test_the_fork_reads_what_stock_refuses(layers: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(mask_pattern=STREAMING, **layers)
    kinds = kinds_in(vars(model.config))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["layer_types"] == [WARNING, *kinds]
    assert kinds_in(vars(model.config)) == kinds
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert kinds_in(vars(loaded)) == kinds
    assert loaded.mask_pattern == str(STREAMING)
    loaded.mask_pattern = None
    loaded.save_pretrained(tmp_path)
    assert kinds_in(json.loads((tmp_path / "config.json").read_text())) == kinds


def kinds_in(settings: dict[str, Any]) -> list[str]:
    """The `layer_types` in it, which there are none of before transformers 4.53."""
    return list(settings.get("layer_types", []))


def make_llava(**settings: Any) -> Any:
    """A small model of images and text; the settings are of its text model."""
    vision = CLIPVisionConfig(**SIZES, image_size=8, patch_size=4)
    text = Qwen2Config(**SIZES, num_key_value_heads=1, vocab_size=40, **settings)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    return LlavaForConditionalGeneration(config).eval()


def test_the_fork_reads_a_pattern_inside_another_config(tmp_path: Path) -> None:
    model = make_llava(mask_pattern=STREAMING)
    model.save_pretrained(tmp_path)
    kinds = kinds_in(vars(model.config.text_config))
    assert kinds in ([], ["full_attention"])
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["text_config"]["layer_types"] == [WARNING, *kinds]
    assert "layer_types" not in written
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert kinds_in(vars(loaded.config.text_config)) == kinds
    with torch.no_grad():
        logits, expected = loaded(TOKENS).logits, model(TOKENS).logits
        assert torch.equal(logits, expected)
        assert not torch.equal(logits, loaded(TOKENS, mask_pattern="native").logits)


def test_a_config_without_layer_types_has_none_when_read_again() -> None:
    class Config:
        mask_pattern = ConfigPattern()

    config, read = Config(), Config()
    config.mask_pattern = "causal"
    written = for_file(config).__dict__
    assert written == {"layer_types": [WARNING], "mask_pattern": "causal"}
    for name in ("layer_types", "mask_pattern"):
        setattr(read, name, written[name])
    assert read.__dict__ == config.__dict__ == {"mask_pattern": "causal"}


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    class Mine(Qwen3ForCausalLM):
        pass

    named = from_function(lambda b, h, q, k: k <= q, name="mine_alone")
    says, based = make_model(mask_pattern="causal"), make_model(mask_pattern="causal")
    says.get_mask_pattern = based.model.get_mask_pattern = lambda input_ids, **inputs: Sink(1)
    for model, message in [
        (make_model(), "got no pattern in its config"),
        (make_model(mask_pattern=Causal() & ~named), "got the function 'mine_alone'"),
        (make_model(mask_pattern={0: PerHead({0: named, 1: "causal"}), 1: "native"}), "got the function 'mine_alone'"),
        (says, "got a Qwen3ForCausalLM with a get_mask_pattern"),
        (says.model, "got a Qwen3Model with a get_mask_pattern"),
        (based, "got a Qwen3ForCausalLM with a get_mask_pattern"),
        (Mine(make_model(mask_pattern="causal").config), "got Mine; expected one of .*Qwen3ForCausalLM"),
        (LlamaForCausalLM(LlamaConfig(**SIZES)), "got LlamaForCausalLM; expected one of Qwen2 and Qwen3"),
        (torch.nn.Linear(1, 1), "got Linear"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_for_stock(model, tmp_path / "folder")
    with pytest.raises(ValueError, match="a config.json cannot hold"):
        make_model(mask_pattern=Document(torch.tensor([[0, 1]])))
    assert not (tmp_path / "folder").exists()


def test_the_library_in_a_folder_needs_torch_and_transformers_alone() -> None:
    files = bundle("standalone")
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                sources = [node.module] if node.module else [alias.name for alias in node.names]
                assert all(f"{source}.py" in files for source in sources)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {str(name).partition(".")[0] for name in names} <= {
                    "torch",
                    "transformers",
                    *sys.stdlib_module_names,
                }
