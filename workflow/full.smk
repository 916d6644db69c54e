"""Run recorded stages at their full setting, in shards, and write what they found to data/recorded.

Run by ``make full``, which passes MODELS and STAGES on. What has been recorded by the same code, options and files is left
alone. A shard goes on where it was stopped: what it has finished lies in ``runs/full/<run>/kept``.
"""

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).parent
workdir: str(ROOT)

sys.path.insert(0, str(ROOT))
from tools import record
from tools.notebook_list import read_notebook_list

# The tools of this environment come first, whoever calls snakemake.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

LIST = read_notebook_list(ROOT / "workflow" / "notebooks.yml")
try:
    CHOSEN = record.chosen_stages(LIST, *(str(config.get(name) or "").split() for name in ("models", "stages")))
except ValueError as error:
    sys.exit(f"make full: {error}")
DUE = [stage for stage in CHOSEN if not record.is_current(stage, LIST, ROOT)]
for stage in CHOSEN:
    print(f"{stage.run}: {'to be recorded' if stage in DUE else 'recorded already'}", file=sys.stderr)

NAMED = "| tee {log} | awk '{{ print \"[{params.run}] \" $0; fflush() }}'"


localrules: full


rule full:
    input:
        [f"runs/full/{stage.run}/recorded.json" for stage in DUE],


for stage in DUE:

    rule:
        name:
            f"{stage.run}_shard".replace("-", "_")
        input:
            record.files(ROOT, *stage.inputs),
        output:
            f"runs/full/{stage.run}/{{shard}}-of-{stage.recorded.shards}.parquet",
        params:
            run=stage.run,
            code=record.stage_code(stage, LIST, record.NUMBERS),
            arguments=shlex.join(stage.arguments(f"runs/full/{stage.run}/kept")),
            n=stage.recorded.shards,
        log:
            f"results/logs/full-{stage.run}-{{shard}}-of-{stage.recorded.shards}.log",
        shell:
            "python -m rcblib {params.arguments} --shard {wildcards.shard}/{params.n} --table {output} 2>&1 " + NAMED

    rule:
        name:
            f"{stage.run}_record".replace("-", "_")
        input:
            [
                f"runs/full/{stage.run}/{shard}-of-{stage.recorded.shards}.parquet"
                for shard in range(1, stage.recorded.shards + 1)
            ],
        output:
            f"runs/full/{stage.run}/recorded.json",
        params:
            run=stage.run,
            record=Path(stage.record).with_suffix(".json").as_posix(),
            drop=stage.recorded.drop,
        log:
            f"results/logs/full-{stage.run}.log",
        shell:
            "python -m tools.record write {params.run} {input} 2>&1 " + NAMED + " && cp {params.record} {output}"
