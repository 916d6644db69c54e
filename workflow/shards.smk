"""Run what takes long in shards, and put the tables of all shards together when none is missing.

Run by ``make full``, which passes MODELS and STAGES on, for recorded stages at their full setting, whose tables go to
data/recorded; and by ``make sweep``, which passes SWEEP on, for every combination of a sweep, whose tables go to
runs/sweeps. What has been made by the same code, options and files is left alone. A shard goes on where it was stopped:
what it has finished is kept beside its table. Every rule is a job of its own, on this machine or any executor's.
"""

import json
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).parent
workdir: str(ROOT)

sys.path.insert(0, str(ROOT))
from tools import record, sharded
from tools.notebook_list import read_notebook_list

# The tools of this environment come first, whoever calls snakemake.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

LIST = read_notebook_list(ROOT / "workflow" / "notebooks.yml")
SWEEP = config.get("sweep")
try:
    if SWEEP:
        WORKS, NOTEBOOKS = sharded.of_sweep(Path(SWEEP), LIST, ROOT)
    else:
        chosen = record.chosen_stages(LIST, *(str(config.get(name) or "").split() for name in ("models", "stages")))
        WORKS, NOTEBOOKS = sharded.of_stages(chosen, LIST, ROOT), []
except ValueError as error:
    sys.exit(f"make {'sweep' if SWEEP else 'full'}: {error}")

NAMED = "| tee {log} | awk '{{ print \"[{params.run}] \" $0; fflush() }}'"


localrules: full


rule full:
    input:
        [work.result for work in WORKS],
        [notebook.output for notebook in NOTEBOOKS],


for work in WORKS:

    rule:
        name:
            f"{work.rule}_shard"
        input:
            work.inputs,
        output:
            f"{work.folder}/{{shard}}-of-{work.shards}.parquet",
        params:
            run=work.run,
            code=work.code,
            arguments=shlex.join(work.arguments),
            n=work.shards,
        log:
            f"results/logs/{work.run}-{{shard}}-of-{work.shards}.log",
        benchmark:
            f"{work.folder}/{{shard}}-of-{work.shards}.tsv"
        threads: work.threads
        resources:
            **work.resources,
        shell:
            "python -m tools.on_gpu python -m rcblib {params.arguments} --shard {wildcards.shard}/{params.n}"
            " --table {output} 2>&1 " + NAMED

    rule:
        name:
            f"{work.rule}_merged"
        input:
            [f"{work.folder}/{shard}-of-{work.shards}.parquet" for shard in range(1, work.shards + 1)],
        output:
            work.result,
        params:
            run=work.run,
            merge=work.merge,
            end=work.end,
        log:
            f"results/logs/{work.run}.log",
        shell:
            "python -m {params.merge} {input} {params.end} 2>&1 " + NAMED


for notebook in NOTEBOOKS:

    rule:
        name:
            notebook.rule
        input:
            notebook=f"notebooks/{notebook.notebook}.ipynb",
            table=notebook.table,
        output:
            notebook.output,
        params:
            run=notebook.name,
            parameters=json.dumps(notebook.parameters),
        log:
            f"results/logs/{notebook.name}.log",
        resources:
            **notebook.resources,
        shell:
            "python -m tools.on_gpu papermill {input.notebook} {output}.unfinished.ipynb --kernel python3"
            " -y {params.parameters:q} --log-output --no-progress-bar 2>&1 "
            + NAMED
            + " && mv {output}.unfinished.ipynb {output}"
