"""Transcribe the rules of published pruners as their papers and code state them: one image, plain loops, no speed."""

import math


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
