"""Names, arguments and values on the pages and in the modules that the installed libraries do not have, or will not have for long.

    python tests/drift.py [FILE.py | PAGE.ipynb ...]       with the libraries of this environment
    python tests/drift.py --overlay FOLDER [FILE ...]      with those in FOLDER before them: older ones, `pip install --target`

Names and arguments are found by the type checker `ty`, which reads the libraries' own source. What it cannot know, because a library
takes it as `**kwargs` or as any text, stands in tables that are read from the libraries themselves.
"""
import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ("transformers", "datasets", "huggingface_hub", "peft", "accelerate", "bitsandbytes", "torch", "gradio", "gradio_client",
             "tokenizers", "safetensors", "trl", "sklearn", "pandas", "pyarrow", "numpy", "matplotlib", "tqdm")
# `ty` does not see these: `load_dataset` gives one of four classes, a configuration takes any name, a card has what its YAML has, pygments and bitsandbytes set attributes on the way
KNOWN = ("bound method `Iterable", "name_or_path", "decoder_start_token_id", "pygments", "`CardData`", "`quant_state`", "`rendered`")

# Arguments that vanished or will, where they once were taken as **kwargs: name -> what is used today
GONE = {"use_auth_token": "token", "torch_dtype": "dtype", "load_in_8bit": "quantization_config", "load_in_4bit": "quantization_config",
        "evaluation_strategy": "eval_strategy", "no_cuda": "use_cpu", "return_all_scores": "top_k=None", "resume_download": "nothing",
        "local_dir_use_symlinks": "nothing", "grouped_entities": "aggregation_strategy", "ignore_verifications": "verification_mode"}
OWN = {"load_in_4bit": ("BitsAndBytesConfig",), "load_in_8bit": ("BitsAndBytesConfig",)}       # and where it is still right


def values():
    "Arguments whose value is one of a set: (argument, callee or None for any) -> the set, as the installed libraries know it."
    def of(module, name):
        found = importlib.import_module(module)
        for part in name.split("."): found = getattr(found, part)
        return {getattr(x, "value", x) for x in found}
    kinds = of("huggingface_hub.constants", "REPO_TYPES") | of("huggingface_hub.constants", "REPO_TYPES_MAPPING") | {"kernel"}
    strategies, tasks = of("transformers.trainer_utils", "IntervalStrategy"), importlib.import_module("transformers.pipelines")
    known = {*tasks.SUPPORTED_TASKS, *tasks.TASK_ALIASES}
    return {("repo_type", None): kinds - {None} - {"models", "datasets", "spaces", "kernels"},
            ("eval_strategy", None): strategies, ("logging_strategy", None): strategies,
            ("save_strategy", None): of("transformers.trainer_utils", "SaveStrategy"),
            ("lr_scheduler_type", None): of("transformers.trainer_utils", "SchedulerType"),
            ("optim", None): of("transformers.training_args", "OptimizerNames"),
            ("task_type", "LoraConfig"): of("peft", "TaskType"),
            ("type", "create_inference_endpoint"): {"authenticated", "public", "private"} & of("huggingface_hub", "InferenceEndpointType"),
            ("space_sdk", None): set(importlib.import_module("huggingface_hub.constants").SPACES_SDK_TYPES),
            ("bnb_4bit_quant_type", None): {"nf4", "fp4"},
            (0, "pipeline"): known, ("task", "pipeline"): known}


# Reading

def code(path):
    "The code of a file, or of each cell of a page, without what only IPython reads."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb": return [(path.name, text)]
    cells = [(f"{path.name}: cell {i}", "".join(c["source"])) for i, c in enumerate(json.loads(text)["cells"], 1) if c["cell_type"] == "code"]
    return [(where, re.sub(r"^(\s*)[!%].*$", r"\1pass", c, flags=re.M)) for where, c in cells if not c.startswith("%%")]


def called(node):
    "The last name of what is called."
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def refused(tree):
    "Names (of an exception or a sentence) that the code expects: what stands in `with expect_fail`, `with failing` or `try` may be wrong on purpose."
    inside = set()
    for node in ast.walk(tree):
        meant = isinstance(node, ast.Try) or isinstance(node, ast.With) and any(
            isinstance(i.context_expr, ast.Call) and called(i.context_expr) in ("expect_fail", "failing", "raises") for i in node.items)
        if meant: inside |= {id(x) for part in node.body for x in ast.walk(part)}
    return inside


def by_value(path, sets):
    "Arguments that are gone, and values that no library knows."
    for where, text in code(path):
        try: tree = ast.parse(text)
        except SyntaxError: continue
        meant = refused(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in meant: continue
            name = called(node)
            if name == "dict": continue
            given = [(k.arg, k.value) for k in node.keywords] + list(enumerate(node.args))
            for arg, value in given:
                if arg in GONE and name not in OWN.get(arg, ()): yield f"{where}: {name}({arg}=) is gone; today: {GONE[arg]}"
                known = sets.get((arg, name), sets.get((arg, None)) if isinstance(arg, str) else None)
                if known is None or not isinstance(value, ast.Constant) or not isinstance(value.value, str): continue
                if value.value not in known: yield f"{where}: {name}({arg}={value.value!r}): one of {', '.join(sorted(map(str, known)))[:300]}"


def imported(path):
    "Names that are imported from a library, and are not there."
    for where, text in code(path):
        try: tree = ast.parse(text)
        except SyntaxError: continue
        meant = refused(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in meant or (node.module or "").split(".")[0] not in LIBRARIES: continue
            try: module = importlib.import_module(node.module)
            except ImportError as e:
                if node.module.split(".")[0] in str(e): yield f"{where}: {e}"
                continue
            for a in node.names:
                if a.name == "*" or hasattr(module, a.name): continue
                try: importlib.import_module(f"{node.module}.{a.name}")
                except ImportError: yield f"{where}: {node.module} has no {a.name}"


def on_purpose(where):
    "Whether a place that `ty` names, `a.ipynb:cell 3:1:5` or `a.py:1:5`, is one where the code expects a refusal."
    found = re.match(r"(.+\.(?:ipynb|py))(?::cell (\d+))?:(\d+):\d+", where)
    if not found: return False
    text = (ROOT/found[1]).read_text(encoding="utf-8")
    if found[2]: text = "".join(json.loads(text)["cells"][int(found[2]) - 1]["source"])
    try: tree = ast.parse(re.sub(r"^(\s*)[!%].*$", r"\1pass", text, flags=re.M))
    except SyntaxError: return False
    meant = refused(tree)
    return any(id(n) in meant and n.lineno <= int(found[3]) <= n.end_lineno for n in ast.walk(tree) if isinstance(n, ast.stmt))


def by_type(paths, overlay=None):
    "What the type checker says of the libraries' names, arguments and literal values."
    found = subprocess.run([sys.executable, "-m", "ty", "check", "--python", sys.prefix, "--output-format", "concise", "--exit-zero",
                            *(["--extra-search-path", str(overlay)] if overlay else []), *map(str, paths)], cwd=ROOT, text=True, capture_output=True)
    if found.returncode: raise RuntimeError(found.stderr[-2000:])
    for line in found.stdout.splitlines():
        hit = re.match(r"(.+?): (?:error|warning)\[([\w-]+)\] (.+)", line)
        if not hit or any(k in line for k in KNOWN) or on_purpose(hit[1]): continue
        where, rule, text = hit.groups()
        if rule == "unknown-argument" and "object.__init__" in text: continue            # our own pydantic dataclasses
        if rule == "missing-attribute":
            of = re.search(r"Object of type `(?:<class ')?(\w+)|^(Module) `(\w+)", text)
            if not of or of[1] and not known_type(of[1]) or of[2] and of[3].split(".")[0] not in LIBRARIES: continue
        elif rule == "invalid-argument-type":
            if not re.search(r'Expected `Literal\[.*found `Literal\["', text): continue
        elif rule not in ("unknown-argument", "missing-module-member", "deprecated"): continue
        yield f"{where}: {text}"


def known_type(name):
    "Whether a class of this name comes from one of the libraries."
    return any(isinstance(getattr(sys.modules.get(lib), name, None), type) for lib in ("huggingface_hub", "transformers", "datasets", "peft", "accelerate", "torch"))


def drift(paths, overlay=None):
    "A sentence for everything that the libraries do not have."
    for lib in LIBRARIES:
        try: importlib.import_module(lib)
        except ImportError: pass
    sets = values()
    return [*by_type(paths, overlay), *(x for p in paths for x in [*imported(p), *by_value(p, sets)])]


def everything():
    return [p for folder in ("hfflow", "nbs") for p in sorted((ROOT/folder).rglob("*")) if p.suffix in (".py", ".ipynb") and "templates" not in p.parts]


if __name__ == "__main__":
    args, overlay = sys.argv[1:], None
    if args[:1] == ["--overlay"]: overlay, args = args[1], args[2:]
    if overlay and overlay not in os.environ.get("PYTHONPATH", ""):       # the libraries in it come first, in a process of its own
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [overlay, os.environ.get("PYTHONPATH")]))
        os.execv(sys.executable, [sys.executable, __file__, "--overlay", overlay, *args])
    found = drift([Path(a) for a in args] or everything(), overlay)
    print("\n".join(found) or "nothing")
    sys.exit(bool(found))
