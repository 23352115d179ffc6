"""`use_mask_pattern`: a pattern for a block of code, and for nothing else."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from typing import Any

import pytest
import torch
from small_models import make_model
from torch import Tensor

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.mask_patterns import (
    Bidirectional,
    Causal,
    Document,
    Sink,
    SlidingWindow,
    UnsupportedMaskError,
    use_mask_pattern,
)


STREAMING = Sink(1) | SlidingWindow(3)
WINDOW = SlidingWindow(2)
IDS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])


def logits(model: Any, ids: Tensor, **call: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids, **call).logits
    return found


@pytest.fixture
def model() -> Any:
    return make_model()


class Said:
    """The logits that a model gives when its calls say the patterns."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.native = logits(model, ids)
        self.streaming = logits(model, ids, mask_pattern=STREAMING)
        self.window = logits(model, ids, mask_pattern=WINDOW)


@pytest.fixture
def said(model: Any, ids: Tensor) -> Said:
    found = Said(model, ids)
    assert not torch.allclose(found.native, found.streaming, atol=1e-2)
    assert not torch.allclose(found.window, found.streaming, atol=1e-2)
    return found


def test_the_innermost_block_speaks_and_the_outer_one_again_after_it(model: Any, said: Said, ids: Tensor) -> None:
    with use_mask_pattern(model, STREAMING):
        assert torch.equal(logits(model, ids), said.streaming)
        with use_mask_pattern(model, "sliding_window(2)"):
            assert torch.equal(logits(model, ids), said.window)
            assert torch.equal(logits(model, ids, mask_pattern=STREAMING), said.streaming)
            with use_mask_pattern(model, "native"):
                assert torch.equal(logits(model, ids), said.native)
        assert torch.equal(logits(model, ids), said.streaming)
    assert torch.equal(logits(model, ids), said.native)


def test_an_exception_leaves_the_block(model: Any, said: Said, ids: Tensor) -> None:
    with pytest.raises(KeyError), use_mask_pattern(model, WINDOW), use_mask_pattern(model, STREAMING):
        raise KeyError
    assert torch.equal(logits(model, ids), said.native)


def test_one_object_may_be_entered_again_and_left_in_any_order(model: Any, said: Said, ids: Tensor) -> None:
    scope, other = use_mask_pattern(model, STREAMING), use_mask_pattern(model, WINDOW)
    with scope, other, scope:
        assert torch.equal(logits(model, ids), said.streaming)
    first, second = ExitStack(), ExitStack()
    first.enter_context(scope)
    second.enter_context(other)
    first.close()
    assert torch.equal(logits(model, ids), said.window)
    second.close()
    assert torch.equal(logits(model, ids), said.native)


def test_a_decorated_function_may_call_itself(model: Any, said: Said, ids: Tensor) -> None:
    @use_mask_pattern(model, STREAMING)
    def run(depth: int) -> list[Tensor]:
        """Deep."""
        return [logits(model, ids), *(run(depth - 1) if depth else []), logits(model, ids)]

    assert all(torch.equal(found, said.streaming) for found in run(2))
    assert run.__doc__ == "Deep."
    assert torch.equal(logits(model, ids), said.native)


def test_functions_that_run_later_are_not_decorated(model: Any) -> None:
    def tokens() -> Any:
        yield 1

    async def answer() -> None: ...

    for function in (tokens, answer):
        with pytest.raises(ValueError, match="which runs after its call has returned; expected a plain function"):
            use_mask_pattern(model, STREAMING)(function)


def test_threads_do_not_see_each_others_blocks(model: Any, said: Said, ids: Tensor) -> None:
    barrier = Barrier(3, timeout=60)

    def run(pattern: Any) -> Tensor:
        with use_mask_pattern(model, pattern) if pattern is not None else ExitStack():
            barrier.wait()
            found = logits(model, ids)
            barrier.wait()
        return found

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, [STREAMING, None, WINDOW]))
    for got, expected in zip(found, [said.streaming, said.native, said.window], strict=True):
        assert torch.equal(got, expected)


def test_one_decorated_function_runs_in_many_threads(model: Any, said: Said, ids: Tensor) -> None:
    barrier = Barrier(3, timeout=60)

    @use_mask_pattern(model, STREAMING)
    def run(fails: bool) -> Tensor:
        barrier.wait()
        found = logits(model, ids)
        barrier.wait()
        if fails:
            raise KeyError
        return found

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run, fails) for fails in (False, True, False)]
        assert isinstance(runs[1].exception(), KeyError)
        assert all(torch.equal(runs[i].result(), said.streaming) for i in (0, 2))
        assert all(torch.equal(found, said.native) for found in pool.map(lambda _: logits(model, ids), range(3)))


def test_tasks_do_not_see_each_others_blocks(model: Any, said: Said, ids: Tensor) -> None:
    async def run(pattern: Any) -> list[Tensor]:
        with use_mask_pattern(model, pattern):
            found = [logits(model, ids)]
            await asyncio.sleep(0)  # the other one runs
            return [*found, logits(model, ids)]

    async def both() -> list[list[Tensor]]:
        return list(await asyncio.gather(run(STREAMING), run(WINDOW)))

    for found, expected in zip(asyncio.run(both()), (said.streaming, said.window), strict=True):
        assert all(torch.equal(got, expected) for got in found)
    assert torch.equal(logits(model, ids), said.native)


def test_a_block_that_a_generator_waits_in_is_open_until_it_goes_on(model: Any, said: Said, ids: Tensor) -> None:
    def tokens() -> Any:
        with use_mask_pattern(model, STREAMING):
            yield logits(model, ids)

    running = tokens()
    assert torch.equal(next(running), said.streaming)
    assert torch.equal(logits(model, ids), said.streaming)
    running.close()
    assert torch.equal(logits(model, ids), said.native)


def test_a_thread_sees_the_block_when_it_is_given_the_context(model: Any, said: Said, ids: Tensor) -> None:
    with ThreadPoolExecutor(1) as pool, use_mask_pattern(model, STREAMING):
        assert torch.equal(pool.submit(logits, model, ids).result(), said.native)
        run = contextvars.copy_context().run
        assert torch.equal(pool.submit(run, logits, model, ids).result(), said.streaming)


def test_leaving_in_another_thread_is_an_error(model: Any) -> None:
    with ThreadPoolExecutor(1) as pool, use_mask_pattern(model, STREAMING) as _:
        scope = use_mask_pattern(model, STREAMING)
        pool.submit(scope.__enter__).result()
        with pytest.raises(RuntimeError, match="left in another thread"):
            scope.__exit__(None, None, None)
        pool.submit(scope.__exit__, None, None, None).result()


def test_it_goes_before_the_config_and_a_subclass_and_changes_neither(ids: Tensor) -> None:
    model, plain = make_model(mask_pattern=WINDOW), make_model()
    with use_mask_pattern(model, STREAMING):
        assert torch.equal(logits(model, ids), logits(plain, ids, mask_pattern=STREAMING))
        assert torch.equal(logits(plain, ids), logits(plain, ids, mask_pattern="native"))  # another model
        assert model.config.to_dict()["mask_pattern"] == "sliding_window(2)"
        twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, ids), logits(plain, ids, mask_pattern=WINDOW))
    plain.get_mask_pattern = lambda *_, **__: WINDOW
    with use_mask_pattern(plain, "native"):
        native = logits(plain, ids)
    del plain.get_mask_pattern
    assert torch.equal(native, logits(plain, ids))


def test_data_goes_with_its_pattern(model: Any, ids: Tensor) -> None:
    pattern = Causal() & Document()
    own = IDS.flip(1).expand(2, -1)
    with use_mask_pattern(model, pattern, {"document_ids": IDS}):
        block = logits(model, ids)
        call = logits(model, ids, mask_inputs={"document_ids": own})
        assert torch.equal(logits(model, ids, mask_pattern=WINDOW), logits(make_model(), ids, mask_pattern=WINDOW))
    assert torch.equal(block, logits(model, ids, mask_pattern=Causal() & Document(IDS)))
    assert torch.equal(call, logits(model, ids, mask_pattern=Causal() & Document(own)))
    with pytest.raises(ValueError, match="'sliding_window"), use_mask_pattern(model, WINDOW, {"document_ids": IDS}):
        model(ids)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_generate_obeys(family: str, kind: str, ids: Tensor) -> None:
    model = make_model(family)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "cache_implementation": kind}
    with use_mask_pattern(model, STREAMING):
        got = model.generate(ids, **settings)
        whole = torch.ones(2, 1, 9, 9, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"a 4D mask beside mask_pattern='sink\(1\)"):
            model.generate(ids, attention_mask=whole, **settings)
    assert torch.equal(got, model.generate(ids, mask_pattern=STREAMING, **settings))
    assert not torch.equal(got, model.generate(ids, **settings))


@pytest.mark.parametrize("mode", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_generate_gives_every_copy_of_a_row_its_data(mode: dict[str, Any], ids: Tensor) -> None:
    model, pattern = make_model(), Causal() & Document()
    own = torch.cat([IDS, IDS.flip(1)])
    settings = {"max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None, **mode}

    def generate(**call: Any) -> Tensor:
        torch.manual_seed(0)
        found: Tensor = model.generate(ids, **settings, **call)
        return found

    with use_mask_pattern(model, pattern, {"document_ids": own}):
        block = generate()
        of_call = generate(mask_inputs={"document_ids": own.flip(0)})
    assert torch.equal(block, generate(mask_pattern=pattern, mask_inputs={"document_ids": own}))
    assert torch.equal(of_call, generate(mask_pattern=pattern, mask_inputs={"document_ids": own.flip(0)}))
    assert not torch.equal(block, of_call)


class Adapter(torch.nn.Module):
    """What adapters do: a model of their own around another, with one of its layers replaced."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


def test_training_in_a_block_has_its_gradients(model: Any, ids: Tensor) -> None:
    wrapped = Adapter(model).train()
    gradients = []
    for call, scope in (({"mask_pattern": STREAMING}, ExitStack()), ({}, use_mask_pattern(wrapped, STREAMING))):
        model.zero_grad()
        model.gradient_checkpointing_enable()
        with scope:
            loss = wrapped(ids, labels=ids, **call).loss
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)


def test_the_base_model_alone_is_enough(model: Any, said: Said, ids: Tensor) -> None:
    with use_mask_pattern(model.model, STREAMING):
        assert torch.equal(logits(model, ids), said.streaming)


def test_a_compiled_model_does_not_bake_the_pattern_in(ids: Tensor) -> None:
    torch.compiler.reset()
    model = make_model(num_hidden_layers=1)
    compiled: Any = torch.compile(model, backend="aot_eager")
    native = logits(model, ids)
    torch.testing.assert_close(logits(compiled, ids), native)
    for pattern in (STREAMING, Bidirectional()):
        with use_mask_pattern(compiled, pattern):
            got = logits(compiled, ids)
        torch.testing.assert_close(got, logits(model, ids, mask_pattern=pattern))
        assert not torch.allclose(got, native, atol=1e-2)
        torch.testing.assert_close(logits(compiled, ids), native)


def test_a_block_inside_compiled_code(ids: Tensor) -> None:
    torch.compiler.reset()
    model = make_model(num_hidden_layers=1)
    said = Said(model, ids)

    @torch.compile(backend="aot_eager")
    def run(pattern: Any) -> Tensor:
        with use_mask_pattern(model, pattern):
            return logits(model, ids)

    torch.testing.assert_close(run(STREAMING), said.streaming)
    torch.testing.assert_close(run(WINDOW), said.window)
    assert torch.equal(logits(model, ids), said.native)


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("sink(", ValueError, "expected"),
        (None, ValueError, "`mask_pattern`: got NoneType"),
        ({"7": "causal", "default": "native"}, ValueError, "got 7; expected numbers from 0 to 1"),
    ],
)
def test_a_malformed_pattern_fails_where_it_is_said(model: Any, pattern: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        use_mask_pattern(model, pattern)


def test_a_model_that_would_ignore_it_is_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4))
    with pytest.raises(UnsupportedMaskError, match="use_mask_pattern: LlamaForCausalLM does not take a pattern"):
        use_mask_pattern(model, STREAMING)


def test_nothing_is_kept_after_the_block(ids: Tensor) -> None:
    model = make_model()
    with use_mask_pattern(model, STREAMING):
        model(ids)
    gone = weakref.ref(model.model)
    del model
    gc.collect()
    assert gone() is None
