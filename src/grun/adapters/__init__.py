"""Ways of adapting a model: GRUN itself as a PEFT method, and what it is compared with."""

from grun.adapters.base import register_with_peft

register_with_peft()
