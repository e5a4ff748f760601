"""From a loaded model to a saved adapter.

python examples/unlearn_loaded_model.py MODEL FORGET.jsonl RETAIN.jsonl
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import grun

name, forget, retain = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
result = grun.unlearn((model, tokenizer), forget, retain, objective="idk", output="forgotten")
print(result)
print(grun.evaluate((model, tokenizer), {"forget": forget, "kept": retain}, adapter=result, output="measured"))
forgetful = result.attach(model)  # a peft.PeftModel: generate with it, push it to the hub
