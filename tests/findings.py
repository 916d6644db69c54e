"""Count what was tried and what was survived, and write it as data that the book reads."""

from dataclasses import dataclass, field

from rcblib.runs.files import write_json
from rcblib.runs.provenance import provenance


def tested():
    """Return the digest of the code that all commands run, and the fingerprint of the model that faults strike."""
    import tiny  # here, as every run of the checks imports this module

    from rcblib.mllm.fingerprint import model_fingerprint
    from rcblib.runs.digest import code_digest
    from tools.record import COMMANDS

    code = code_digest(*sorted({module for modules in COMMANDS.values() for module in modules}))
    return {"code": code, "models": {"tiny, of random weights": model_fingerprint(tiny.tiny_llava(7)[0])}}


@dataclass
class Findings:
    """Hold a row for each kind of fault: how often it was tried, and how often all ended as it should."""

    rows: list[dict] = field(default_factory=list)

    def add(self, kind, what, outcomes):
        """Add a kind of fault, and fail with the first that was not survived.

        Parameters
        ----------
        kind, what : str
            Its name; in a sentence, what was done and what had to hold.
        outcomes : iterable of str
            One each time: empty where it was survived, else what went wrong.
        """
        outcomes = list(outcomes)
        wrong = [outcome for outcome in outcomes if outcome]
        survived = len(outcomes) - len(wrong)
        self.rows.append({"kind": kind, "tried": len(outcomes), "survived": survived, "what": what})
        assert outcomes, f"{kind}: nothing was tried"
        assert not wrong, f"{kind}: {len(wrong)} of {len(outcomes)} not survived, first: {wrong[0]}"

    def write(self, path):
        """Write all rows, if there are any, with where and with what they were found."""
        if self.rows:
            rows = sorted(self.rows, key=lambda row: row["kind"])
            write_json(path, {"made": provenance(), **tested(), "rows": rows})
