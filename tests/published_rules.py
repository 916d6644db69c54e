"""Transcribe the rules of published pruners as their papers and code state them: one image, plain loops, no speed."""

import math

import numpy as np


def cosine(a, b):
    return float(a @ b) / (float(a.norm()) * float(b.norm()))


def ranked(values):
    """List positions from the largest value to the smallest."""
    return sorted(range(len(values)), key=lambda i: -float(values[i]))


def divprune(tokens, n_kept):
    """Begin with the token whose nearest neighbour is farthest; add the one farthest from all that were chosen."""
    n = len(tokens)
    distance = [[1 - cosine(tokens[i], tokens[j]) for j in range(n)] for i in range(n)]
    chosen = []
    while len(chosen) < n_kept:
        if chosen:
            gaps = [min(distance[i][j] for j in chosen) for i in range(n)]
        else:
            gaps = [sorted(distance[i])[1] for i in range(n)]
        chosen.append(max((i for i in range(n) if i not in chosen), key=lambda i: gaps[i]))
    return sorted(chosen)


def vispruner(attention, features, n_kept, important_ratio=0.5):
    """Keep the most attended half; remove of the rest, eight at a time, what is most like a token at an odd place."""
    order = ranked(attention)
    n_important = int(n_kept * important_ratio)
    important, rest = order[:n_important], order[n_important:]
    n_diverse = n_kept - n_important
    while n_diverse > 0 and len(rest) > n_diverse:
        even, odd = rest[::2], rest[1::2]
        n_removed = min(8, len(rest) - n_diverse, len(even))
        closest = [max(cosine(features[i], features[j]) for j in odd) for i in even]
        rest = [even[i] for i in ranked(closest)[n_removed:]] + odd
    return sorted(important + (rest if n_diverse else []))


def holov(tokens, attention, n_kept, n_segments=16):
    """Weigh segments by attention and by the variance of cosines, share the budget out, keep the most attended."""
    n, segments, start = len(tokens), [], 0
    for number in range(n_segments):
        size = n // n_segments + (1 if number < n % n_segments else 0)
        if size:
            segments.append(list(range(start, start + size)))
        start += size
    weights = []
    for members in segments:
        m = len(members)
        if m == 1:
            weights.append(float(attention[members[0]]))
            continue
        unit = {i: tokens[i] / (tokens[i].norm() + 1e-6) for i in members}
        variances = []
        for i in members:
            row = [0.0 if i == j else float(unit[i] @ unit[j]) for j in members]
            mean = sum(row) / (m - 1)
            variances.append(sum((value - mean) ** 2 for value in row) / (m - 1))
        scaled = [1e3 * float(attention[i]) for i in members]
        scale = (sum(map(abs, scaled)) / m) / (sum(map(abs, variances)) / m + 1e-6)
        weights.append(sum(a + 0.09 * v * scale for a, v in zip(scaled, variances, strict=True)) / m)
    shares = [weight / (sum(weights) + 1e-6) for weight in weights]
    counts = [math.floor(share * n_kept) for share in shares]
    for number in ranked(shares)[: n_kept - sum(counts)]:
        counts[number] += 1
    return counts, segments


def visionzip(attention, keys, states, n_dominant, n_contextual):
    """Keep the most attended; merge the rest into evenly strided ones of it, by keys.

    Returns kept positions, and for each contextual one its target and state.
    """
    dominant = sorted(ranked(attention)[:n_dominant])
    rest = [i for i in range(len(attention)) if i not in dominant]
    step = max(1, len(rest) // n_contextual)
    targets = rest[::step][:n_contextual]
    joined = {target: [] for target in targets}
    for i in rest:
        if i not in targets:
            joined[max(targets, key=lambda t: cosine(keys[i], keys[t]))].append(states[i])
    merged = {}
    for target, others in joined.items():
        mean = sum(others) / len(others) if others else 0 * states[target]
        merged[target] = states[target] + mean
    return dominant, merged


def prumerge(attention, keys, states, n_kept, near=32):
    """Add to the most attended states those of the most similar keys, weighed by attention; sum up the others."""
    kept = ranked(attention)[:n_kept]
    rows = {}
    for i in kept:
        others = sorted((j for j in range(len(keys)) if j != i), key=lambda j: -cosine(keys[i], keys[j]))
        rows[i] = states[i] + sum(float(attention[j]) * states[j] for j in others[:near])
    total = sum(float(attention[j]) * states[j] for j in range(len(keys)) if j not in kept)
    return rows, total


def n_outliers(attention):
    """Count what lies above the third quartile by one and a half interquartile ranges."""
    values = sorted(map(float, attention))

    def percentile(share):
        place = share * (len(values) - 1)
        low = math.floor(place)
        return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    lower, upper = percentile(0.25), percentile(0.75)
    return sum(value > upper + 1.5 * (upper - lower) for value in values)


def tome_round(rows, sizes, n_merged):
    """Merge tokens at even places into their most similar ones at odd places, the most similar pairs first."""
    even, odd = range(0, len(rows), 2), range(1, len(rows), 2)
    target = {i: max(odd, key=lambda j: cosine(rows[i], rows[j])) for i in even}
    order = sorted(even, key=lambda i: -cosine(rows[i], rows[target[i]]))
    gone = order[: min(n_merged, len(rows) // 2)]
    sums = {i: rows[i] * sizes[i] for i in range(len(rows))}
    counts = dict(enumerate(sizes))
    for i in gone:
        sums[target[i]] = sums[target[i]] + rows[i] * sizes[i]
        counts[target[i]] += sizes[i]
    left = [i for i in range(len(rows)) if i not in gone]
    return [sums[i] / counts[i] for i in left], [counts[i] for i in left], left


def cdpruner(tokens, relevance, n_kept):
    """Choose greedily the rows of the conditional kernel whose determinant is largest, by determinants."""
    low, high = float(relevance.min()), float(relevance.max())
    r = [(float(value) - low + 1e-6) / (high - low) for value in relevance]
    n = len(tokens)
    kernel = [[r[i] * cosine(tokens[i], tokens[j]) * r[j] for j in range(n)] for i in range(n)]
    chosen = []
    for _ in range(n_kept):
        best = None
        for i in range(n):
            if i in chosen:
                continue
            members = [*chosen, i]
            volume = float(np.linalg.det(np.array([[kernel[a][b] for b in members] for a in members])))
            if best is None or volume > best[0]:
                best = (volume, i)
        chosen.append(best[1])
    return sorted(chosen)


def last_row_attention(attention, span, n_kept):
    """Keep of a picture's rows those that the prompt's last row attends to most, mean over heads."""
    n_heads = len(attention)
    mean = [sum(float(attention[h][-1][i]) for h in range(n_heads)) / n_heads for i in span]
    return sorted(ranked(mean)[:n_kept])


def raters(visual, words):
    """List the words to which the softmax over words of products with visual rows gives more than the mean."""
    looks = [0.0] * len(words)
    for row in visual:
        products = [math.exp(float(row @ word)) for word in words]
        for m, value in enumerate(products):
            looks[m] += value / sum(products) / len(visual)
    return [m for m in range(len(words)) if looks[m] > sum(looks) / len(looks)]


def density_peaks(rows, n_clusters):
    """Cluster by density peaks, as many neighbours as clusters; return the centre that each row belongs to."""
    n, width = len(rows), len(rows[0])
    distance = [[float((a - b).norm()) / math.sqrt(width) for b in rows] for a in rows]
    density = [math.exp(-sum(d * d for d in sorted(distance[i])[:n_clusters]) / n_clusters) for i in range(n)]
    largest = max(map(max, distance))
    gaps = [
        min([distance[i][j] for j in range(n) if density[j] > density[i]], default=largest) for i in range(n)
    ]
    centres = ranked([gap * own for gap, own in zip(gaps, density, strict=True)])[:n_clusters]
    return [i if i in centres else min(centres, key=lambda c: distance[i][c]) for i in range(n)]


def sparsevlm(attention, rows, words, n_kept):
    """Keep what the raters attend to most; of the best three tenths of the others every ten become one.

    `attention` is ``(n_heads, n_words, n_rows)``, of the words to the picture's rows; returns kept positions, and for
    each merged row the position of its centre and its state.
    """
    score = [sum(float(attention[:, m, i].mean()) for m in words) / len(words) for i in range(len(rows))]
    order = ranked(score)
    kept, others = order[:n_kept], order[n_kept:]
    best = others[: int(len(others) * 0.3) + 1]
    centre = density_peaks([rows[i] for i in best], int(len(best) / 10) + 1)
    groups = {}
    for place, own in enumerate(centre):
        groups.setdefault(best[own], []).append(rows[best[place]])
    return sorted(kept), {position: sum(own) / len(own) for position, own in groups.items()}
