"""Score every token of an image as each pruning method does, so that methods can be compared token by token.

A method that scores tokens says so itself. One that chooses them jointly, or merges them, ranks a token by how many of
several budgets it survives. One that drops rows inside the LLM is asked for the relevance that it reads in front of its
first layer, where all rows are still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from rcblib.mllm import Adapter
from rcblib.mllm.layer_state import LayerState
from rcblib.mllm.layers import dropping
from rcblib.mllm.prompt import Batch
from rcblib.mllm.reduced import Reduced
from rcblib.pruners.base import Pruner
from rcblib.pruners.context import PruningContext
from rcblib.pruners.distilled import DistilledPruner
from rcblib.pruners.inside import InsidePruner
from rcblib.pruners.registry import PRUNERS, Method
from rcblib.records import EncodedImage
from rcblib.tensors.scoring import RULES

BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the tokens at which methods without scores are asked what they keep."""

N_COMPARED = 128
"""Tokens that are compared with all words at once."""

UNRANKED = {
    "all": "it keeps every token",
    "downsampled": "it makes the picture smaller, and every token another one",
    "pooled": "it takes the mean of every four tokens, whichever they are",
    "oracle": "it is the masks themselves",
    "anti_oracle": "it is the masks themselves",
}
"""Methods that rank no token by what the model makes of it, and why."""

REPEATED = {
    "random": "random numbers are drawn where tables are read",
    "cls_most": "its score is the signal cls_similarity",
    "cls_least": "its score is the signal cls_similarity, turned round",
    "cls_attention": "its score is the signal cls_attention",
}
"""Methods whose score another column of a table of tokens holds, and which."""


def rankable(
    adapter: Adapter, settings: Mapping[str, Mapping[str, object]] | None = None
) -> tuple[dict[str, Method], dict[str, str]]:
    """Return the registered methods that rank the tokens of a model, and why the others do not.

    Parameters
    ----------
    adapter : Adapter
        The model.
    settings : Mapping, optional
        Name of a method to parameters that it cannot do without, such as its codebook.
    """
    chosen, left_out = {}, dict(UNRANKED)
    for name, method in PRUNERS.items():
        if name in UNRANKED:
            continue
        try:
            pruner_at(method, 0.5, (settings or {}).get(name, {}), adapter).check(adapter)
        except ValueError as error:
            left_out[name] = str(error)
        else:
            chosen[name] = method
    return chosen, left_out


def pruner_at(method: Method, ratio: float, settings: Mapping[str, object], adapter: Adapter) -> Pruner:
    """Make a method's pruner at a budget, or as it is where it sets its own."""
    budget = {"retain_ratio": ratio} if "retain_ratio" in method.parameters else {}
    return method.make(budget | dict(settings), family=adapter.family)


@torch.no_grad()
def method_scores(
    adapter: Adapter,
    image: EncodedImage,
    prompts: Sequence[str],
    method: Method,
    settings: Mapping[str, object] | None = None,
    image_index: int = 0,
) -> torch.Tensor:
    """Score the tokens of an image as a method does, one view after the other.

    Parameters
    ----------
    adapter : Adapter
        With its processor.
    image : EncodedImage
        With the signals that the method needs.
    prompts : sequence of str
        What is asked about the image, as `Adapter.prompt` writes it; where the method's choice depends on it, the
        scores are the mean over these.
    method : Method
        Of `rankable`.
    settings : Mapping, optional
        Its parameters besides the budget.
    image_index : int
        Number of the image, for random choices.

    Returns
    -------
    torch.Tensor
        ``(n_tokens of all views,)`` float32 on the CPU; higher = keep. Scores of different views compare where the
        method's own do.
    """
    settings = settings or {}
    pruner = pruner_at(method, 0.5, settings, adapter)
    is_inside = isinstance(pruner, InsidePruner)
    reads = is_inside or pruner.reads_prompt
    found = []
    for prompt in prompts if reads else prompts[:1]:
        if is_inside:
            found.append(_relevance(pruner, adapter, image, prompt))
            continue
        ids = adapter.read_prompt(prompt).ids
        if pruner._overrides("score"):
            found.append(_scores(pruner, image, image_index))
            continue
        survived = torch.zeros(image.n_tokens)
        for ratio in BUDGETS:
            at = pruner_at(method, ratio, settings, adapter)
            survived[at.reduce_image(image, image_index, ids, adapter).positions] += 1 / len(BUDGETS)
        found.append(survived)
    return torch.stack(found).mean(0)


def _scores(pruner: Pruner, image: EncodedImage, image_index: int) -> torch.Tensor:
    parts = [
        pruner.score((view,), PruningContext(image_index, number)) for number, view in enumerate(image.views)
    ]
    return torch.cat([part.float().cpu() for part in parts])


def _relevance(pruner: InsidePruner, adapter: Adapter, image: EncodedImage, prompt: str) -> torch.Tensor:
    """Return what a method inside the LLM makes of each row in front of its first layer, token by token."""
    assembled = adapter.read_prompt(prompt).filled([adapter.assemble(image)])
    llm, found = adapter.language_model, []

    def look(state: LayerState) -> list[Reduced]:
        found.append(pruner.relevance(state)[state.spans[0].to(state.hidden_states.device)].float().cpu())
        return [Reduced(torch.arange(len(span))) for span in state.spans]

    first = min(pruner.schedule(len(llm.layers)))
    spans = Batch([assembled]).spans
    settings = {"n_attention_rows": pruner.n_rows(spans), "attention_of": pruner.attention_of}
    with dropping(llm, spans, look, (first,), form="masked", **settings):
        adapter.next_token_logits([assembled])
    return found[0][adapter.token_rows(image)]


@torch.no_grad()
def token_measures(
    adapter: Adapter, image: EncodedImage, distilled: DistilledPruner | None = None
) -> dict[str, torch.Tensor]:
    """Measure what a token is by itself, one view after the other.

    Returns
    -------
    dict
        ``"token_norm"``, its length; ``"token_word_similarity"``, its largest cosine to a word embedding of the LLM;
        with a pruner that is distilled from probing ``"token_predicted"``, what its heads predict, before tokens are
        spread over the picture. All ``(n_tokens of all views,)`` float32 on the CPU.
    """
    tokens = torch.cat([view.tokens for view in image.views]).float()
    words = F.normalize(adapter.model.get_input_embeddings().weight.float(), dim=-1)
    unit = F.normalize(tokens, dim=-1).to(words.device)
    nearest = torch.cat([(part @ words.T).amax(-1) for part in unit.split(N_COMPARED)])
    found = {"token_norm": tokens.norm(dim=-1), "token_word_similarity": nearest}
    if distilled is not None:
        single, influence = distilled.scorer.predict(tokens).unbind(-1)
        weight = distilled.influence_weight
        found["token_predicted"] = (1 - weight) * single + weight * influence
    return {name: values.cpu() for name, values in found.items()}


def codebook_rules(adapter: Adapter, codebook: object) -> dict[str, tuple[Method, dict[str, object]]]:
    """Return the codebook's methods under every rule, and its variants, by the name of their column."""
    rules = {
        f"codebook_{rule}": (PRUNERS["codebook"], {"codebook": codebook, "rule": rule}) for rule in RULES
    }
    fewer = {
        name: (PRUNERS[name], {"codebook": codebook}) for name in ("codebook_distinct", "codebook_medoids")
    }
    return rules | fewer
