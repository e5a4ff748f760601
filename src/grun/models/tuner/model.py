"""`GrunModel`: the PEFT tuner that wraps decoder layers and gives them the prompt positions of every call."""

from __future__ import annotations

__all__ = ["GrunModel"]

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from grun.core.errors import UserError
from grun.core.storage.weights import check_same_base, not_finite
from grun.models.tuner.base_model import check_writes_text, decoder_layers, text_config, token_ids
from grun.models.tuner.call.cache import (
    cached_columns,
    check_read,
    covered,
    drop_unread,
    keep_with_cache,
    prompts_of,
    readings_of,
    rewind,
    shut_of,
    values_of,
)
from grun.models.tuner.call.context import CallContext, GateKey, Gates, GenerationScope, Runtime, span_of_call
from grun.models.tuner.call.prompt_position import (
    check_not_packed,
    inferred_mask,
    real_tokens,
)
from grun.models.tuner.config import GrunConfig
from grun.models.tuner.layer import GrunLayer
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.topic import TopicGate


class GrunModel(BaseTuner):
    """A causal language model with GRUN adapters (see `GrunConfig`).

    In a forward call the end of each prompt comes from `prompt_lengths` (B,) or from `labels`; in `generate` from the
    attention mask. Gate decisions of the last call that read prompts are in `last_gates`.
    """

    prefix = "grun_"
    tuner_layer_cls = GrunLayer
    target_module_mapping: dict[str, list[str]] = {}
    uses_shared_state = True
    takes_prompt_lengths = True

    def _pre_injection_hook(self, model: nn.Module, config: GrunConfig, adapter_name: str) -> None:  # type: ignore[override]
        self.runtime = Runtime([])

    def _post_injection_hook(self, model: nn.Module, config: GrunConfig, adapter_name: str) -> None:  # type: ignore[override]
        self._hooks = [
            model.register_forward_pre_hook(self._begin_call, with_kwargs=True),
            model.register_forward_hook(self._end_call, with_kwargs=True, always_call=True),
        ]

    def _prepare_adapter_config(self, peft_config: GrunConfig, model_config: dict[str, Any]) -> GrunConfig:  # type: ignore[override]
        check_writes_text(self.model)
        text = text_config(self.model)
        count = text.num_hidden_layers
        resolved = copy.deepcopy(peft_config)  # the caller's own stays as it is, fit for other models
        wrapped: set[int] = set()
        for own in resolved.parts.values():
            for name, found in (("hidden_size", text.hidden_size), ("num_layers", count)):
                expected = getattr(own, name)
                if expected is not None and expected != found:
                    raise UserError(
                        f"this adapter was made for a base model with {name} {expected}, but the model has {found}: "
                        "load it on the model it was trained on."
                    )
                setattr(own, name, found)
            if own.rank > text.hidden_size:
                raise UserError(
                    f"rank is {own.rank}, expected at most {text.hidden_size}, the hidden size of the model."
                )
            own.layers = list(own.resolved_layers(count))
            wrapped.update(int(index) for index in own.layers)
            own.topic_layer = own.resolved_topic_layer(count)
            wrapped.update(own.shared_gates)
        resolved.base_weights = check_same_base(self.model, resolved.base_weights, resolved.base_model_name_or_path)
        prefix, _ = decoder_layers(self.model)
        resolved.target_modules = [f"{prefix}.{index}" for index in sorted(wrapped)]
        self.peft_config.update({name: resolved for name, given in self.peft_config.items() if given is peft_config})
        return resolved

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], *args: Any) -> None:
        own = {name: tensor for name, tensor in state_dict.items() if self.prefix in name}
        if (wrong := not_finite(own)) is not None:
            raise UserError(
                f"the adapter cannot be used: its tensor {wrong} holds NaN or infinity; copy the adapter again."
            )
        super()._load_from_state_dict(state_dict, *args)

    @staticmethod
    def _check_target_module_exists(peft_config: GrunConfig, key: str) -> bool:  # type: ignore[override]
        return key in (peft_config.target_modules or ())

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: GrunConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, GrunLayer):
            layer = target
        else:
            layer = GrunLayer(target, int(target_name), self.runtime)
            self.runtime.layers.append(layer)
            self.runtime.layers.sort(key=lambda wrapped: wrapped.index)
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config)

    @property
    def last_gates(self) -> dict[str, Gates]:
        """Gate decisions of the last call that read prompts, by adapter (`adapter/member` in a stack), if it has a gate."""
        return self.runtime.gates_of_last_call(self._active_parts())

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` of the model; prompts end at the last token that the attention mask shows.

        Raises:
            UserError: if there is no prompt, or no attention mask of the whole sequence when it continues a cache.
        """
        inputs = next((kwargs[k] for k in ("inputs", "input_ids", "inputs_embeds") if kwargs.get(k) is not None), None)
        inputs = args[0] if args else inputs
        if inputs is None:
            raise UserError("generate() with a GRUN adapter needs a prompt: pass input_ids or inputs_embeds.")
        past = drop_unread(kwargs.get("past_key_values"), self._keys(_reads_prompts))
        if kwargs.get("attention_mask") is None and past == 0:
            given = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
            kwargs["attention_mask"] = inferred_mask(inputs, kwargs, given or self.model.generation_config)
        mask_BT = kwargs.get("attention_mask")
        if mask_BT is None or mask_BT.shape[1] <= past:
            raise UserError(
                "generate() continues a cache: pass the attention_mask of the whole sequence, the cached tokens included, "
                "so that the prompt's end is known."
            )
        takes_back = any(kwargs.get(k) is not None for k in ("assistant_model", "prompt_lookup_num_tokens"))
        with self.generating(mask_BT.bool(), takes_back):
            return self.model.generate(*args, **kwargs)

    def _keys(self, which: Callable[[GrunConfig, Any], bool]) -> set[GateKey]:
        """Keys of those gates of active adapters for which a function of configuration and gate is true."""
        return {
            (name, layer.index)
            for layer in self.runtime.layers
            for name in layer.active_here()
            if name in layer.gates and which(layer.configs[name], layer.gates[name])
        }

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        """The context that PEFT enters in every call: `adapter_names` arrives here, and is refused."""
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                "adapter_names cannot be used with a GRUN adapter: all rows of a call have the same active adapters. Call "
                "set_adapter() and pass the rows of each adapter by themselves."
            )
        return nullcontext()

    @contextmanager
    def generating(self, mask_BT: Tensor, takes_back: bool = False) -> Iterator[None]:
        """Context for calls that continue prompts with this mask (B, T); values that are the same in all are computed once."""
        before, self.runtime.generation = self.runtime.generation, GenerationScope(mask_BT, takes_back=takes_back)
        try:
            yield
        finally:
            self.runtime.generation = before

    @torch.compiler.disable  # a trace would fix the values of its first call
    def _begin_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        prompt_lengths = kwargs.pop("prompt_lengths", None)
        self.runtime.call = None
        self.runtime.idle = prompt_lengths is None and not args and self._is_idle(kwargs)
        if self.runtime.idle or not any(layer.active_here() for layer in self.runtime.layers):
            return args, kwargs
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs if args else kwargs
        inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        if inputs is None:
            raise UserError("a forward call needs input_ids or inputs_embeds.")
        past = cached_columns(given.get("past_key_values"))
        if past:
            rewind(given["past_key_values"], self.runtime.layers)
        kept = readings_of(given["past_key_values"]) if past else None
        scope = self.runtime.generation
        span = span_of_call(inputs, past, prompt_lengths, given, scope, prefilled=kept is not None)
        call = CallContext(span, past, kept or {})
        if self._keys(_reads_text):
            call.ids_BT = token_ids(inputs, self.model.get_input_embeddings())
        answers = set() if torch.is_grad_enabled() else self._keys(_reads_answers)
        if answers:
            call.real_BT = real_tokens(given.get("attention_mask"), call.span, inputs, past)
            call.last = {} if scope is None or scope.takes_back else None
        if call.span is None:
            check_read(given["past_key_values"], past, answers)
            call.shut = set(shut_of(given["past_key_values"]) or ())
            call.values = {} if answers else values_of(given["past_key_values"])
        elif self.runtime.continuation is None:
            check_not_packed(given, call.span, past)
            held = min(past, int(call.span.end_B.max()) + 1)
            if past and int(call.span.start_B.min()) < held:
                check_read(given["past_key_values"], held, self._keys(_reads_prompts))
        if past and answers:
            call.of_prompts = prompts_of(given["past_key_values"])
        known = self.runtime.continuation
        if known is not None:
            call.readings, call.complete = dict(known.readings), known.complete
        if given.get("output_hidden_states", getattr(module.config, "output_hidden_states", False)):
            call.keep_edited(given.get("return_dict", getattr(module.config, "return_dict", True)) is False)
            kwargs["return_dict"] = True
        self.runtime.call = call
        return args, kwargs

    def _is_idle(self, given: dict[str, Any]) -> bool:
        """Check whether this is a step of decoding in which no active adapter edits anything."""
        cache, scope = given.get("past_key_values"), self.runtime.generation
        shut = shut_of(cache)
        if not shut or given.get("labels") is not None or not shut.issuperset(self._active_parts()):
            return False
        return scope is None or cached_columns(cache) >= scope.width

    @torch.compiler.disable
    def _end_call(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        call, self.runtime.call, self.runtime.idle = self.runtime.call, None, False
        if call is None or output is None:
            return output
        if call.span is not None:
            self.runtime.last_logits = {
                key: call.of_prompts.get(key, reading_BS[:, :1])[:, 0] for key, reading_BS in call.readings.items()
            }
        cache = getattr(output, "past_key_values", None)
        if cache is None and isinstance(output, tuple):
            cache = next((item for item in output if hasattr(item, "get_seq_length")), None)
        if cache is not None and (call.span is not None or call.real_BT is not None):
            answers = set() if call.real_BT is None else self._keys(_reads_answers)
            keep_with_cache(cache, call, covered(cache, call, answers), self._shut(call))
        if call.edited is None:
            return output
        output["hidden_states"] = call.with_edits(output.hidden_states)
        return output.to_tuple() if call.as_tuple else output

    def _active_parts(self) -> dict[str, GrunConfig]:
        """Configurations of all parts of the active adapters, by name."""
        return {part: layer.configs[part] for layer in self.runtime.layers for part in layer.active_here()}

    def _shut(self, call: CallContext) -> frozenset[str]:
        """Active parts that edit nothing in decoding: they edit no generated token, or their gates are shut for every row."""
        found = set()
        for name, config in self._active_parts().items():
            if config.reads_answers:
                continue  # a token that is still to come may open its gate
            if config.edit_from == "last_prompt_only" or name in call.shut:
                found.add(name)
            elif config.gate != "none" and config.gate_layer is None:
                held = [layer for layer in self.runtime.layers if (name, layer.index) in call.readings]
                values = [layer.gates[name].value(call.readings[name, layer.index][:, 0]) for layer in held]
                if not any(bool((value != 0).any()) for value in values):
                    found.add(name)
        return frozenset(found)

    def _check_merge_allowed(self) -> None:
        raise UserError(
            "a GRUN adapter cannot be merged into the weights: its gate depends on the prompt. Save the adapter and load it "
            "with PeftModel.from_pretrained, or use unload() to get the base model back."
        )

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Remove the adapter's name from a key of a checkpoint, such as `...grun_gate.<name>.layers.0.weight`."""
        for part in GrunLayer.adapter_layer_names:
            key = key.replace(f".{part}.{adapter_name}.", f".{part}.")
        return key

    def _unload_and_optionally_merge(  # type: ignore[override]  # PEFT's stub says None, its code returns the model
        self, *args: Any, merge: bool = True, **kwargs: Any
    ) -> nn.Module:
        """Restore the base model: remove every wrapper and hook."""
        if merge:
            self._check_merge_allowed()
        _, layers = decoder_layers(self.model)
        for wrapped in self.runtime.layers:
            layers[wrapped.index] = wrapped.base_layer
        for hook in self._hooks:
            hook.remove()
        self.runtime.layers.clear()
        del self.model.peft_config
        return self.model


def _reads_prompts(config: GrunConfig, gate: Any) -> bool:
    """Whether a gate reads every token of a prompt."""
    return config.gate_reads == "prompt" or isinstance(gate, TopicGate)


def _reads_text(config: GrunConfig, gate: Any) -> bool:
    """Whether a gate reads token ids."""
    return isinstance(gate, LexicalGate)


def _reads_answers(config: GrunConfig, gate: Any) -> bool:
    """Whether a gate reads the tokens after a prompt."""
    return config.reads_answers
