"""Encodes the rows of preference_cases.py with ms-swift 3.9 and writes tests/golden/preference.json.

    PYTHON tests/golden/make_preference.py MODEL_DIR

PYTHON, MODEL_DIR and what is written of an answer are those of make_golden.py.
"""

import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from codec import cpu  # noqa: E402
from make_golden import PACKAGES, Reference, environment_of, ffmpeg_version, version  # noqa: E402
from preference_cases import CASES  # noqa: E402


class PreferenceReference(Reference):
    """ms-swift's template in the mode of a case."""

    def encode(self, case):
        try:
            # The default of ms-swift's rlhf command (swift/llm/argument/rlhf_args.py).
            template = self.template({"loss_scale": "last_round", **case.options})
            template.set_mode(case.mode)
            row = self.standard(copy.deepcopy(case.row), case.via)
            floats = []
            encode = template._encode_truncated

            def spy(inputs):
                self.floats = {}
                out = encode(inputs)
                floats.append(self.floats)
                return out

            template._encode_truncated = spy
            try:
                out = dict(template.encode(row, return_length=True))
            finally:
                del template._encode_truncated
            made = {"label": out["label"]} if "label" in out else {}
            for side, self.floats in zip(("chosen", "rejected"), floats, strict=True):
                part = {k[len(side) + 1 :]: v for k, v in out.items() if k.startswith(f"{side}_") and v is not None}
                positions = template.packing_row([dict(part)])["position_ids"]
                made[side] = self.describe(part, positions, False)
        except Exception as error:
            text = re.sub(r"0x[0-9a-f]+", "0x", str(error).replace(os.getcwd(), "."))
            return {"error": f"{type(error).__name__}: {text[:120]}"}
        return made


def main():
    model = str(Path(sys.argv[1]).resolve())
    if len(sys.argv) > 2:
        names, out = json.loads(sys.argv[2]), Path(sys.argv[3])
        os.chdir(HERE / "media")
        reference = PreferenceReference(model)
        out.write_text(json.dumps({case.name: reference.encode(case) for case in CASES if case.name in names}))
        return
    groups, made = {}, {}
    for case in CASES:
        groups.setdefault(environment_of(case), []).append(case.name)
    for environment, names in groups.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out.json")
            command = [sys.executable, __file__, model, json.dumps(names), str(out)]
            subprocess.run(command, env=os.environ | dict(environment), check=True)
            made |= json.loads(out.read_text())
    about = {"versions": {name: version(name) for name in PACKAGES}, "cpu": cpu(), "ffmpeg": ffmpeg_version()}
    lines = ",\n".join(f"{json.dumps(c.name)}: {json.dumps(made[c.name], ensure_ascii=False)}" for c in CASES)
    (HERE / "preference.json").write_text(f'{{"made_with": {json.dumps(about)},\n"cases": {{\n{lines}\n}}}}\n')
    print(f"{len(made)} cases, {sum('error' in entry for entry in made.values())} errors")


if __name__ == "__main__":
    main()
