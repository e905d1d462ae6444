"""Every network in double precision NumPy, from the papers; nothing is the package's but the names of parameters."""

import numpy as np
from scipy.special import expit


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def silu(x):
    return x * expit(x)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def waves(x, slowest, fastest, number):
    angles = np.multiply.outer(x, slowest * (fastest / slowest) ** (np.arange(number) / (number - 1)))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def context(p, t, condition=None):
    y = linear(p["time"], silu(linear(p["waves"], waves(np.float64(t), 1.0, 1000.0, 64))))
    if "labels" in p:
        return y + p["labels"][-1 if condition is None else condition]
    if "condition" in p:
        return y + (p["no_condition"] if condition is None else linear(p["condition"], condition))
    return y


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def modulation(p, c):
    return linear(p["dense"], silu(c))


def attention(p, x, heads, seen=None):
    places, width = x.shape
    size = width // heads
    q, k, v = np.split(linear(p["project_in"], x), 3, -1)
    out = np.zeros_like(x)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights = np.exp(q[:, own] @ k[:, own].T / np.sqrt(size)) * (np.ones(places) if seen is None else seen)
        out[:, own] = weights / weights.sum(-1, keepdims=True) @ v[:, own]
    return linear(p["project_out"], out)


def layers(p):
    """The blocks of a stack, one after another."""

    def pick(p, i):
        return {name: pick(part, i) if isinstance(part, dict) else part[i] for name, part in p.items()}

    def depth(p):
        part = next(iter(p.values()))
        return depth(part) if isinstance(part, dict) else len(part)

    return [pick(p, i) for i in range(depth(p))]


def relative_attention(p, x, heads, seen, locations, wavelengths):
    """Of point i to point j by what lies between them: number n and number n + planes turn by waves of a distance."""
    places, width = x.shape
    size = width // heads
    planes, coordinates = size // 2, locations.shape[1]
    slowest, fastest = 2 * np.pi / wavelengths[1], 2 * np.pi / wavelengths[0]
    q, k, v = np.split(linear(p["project_in"], x), 3, -1)
    out = np.zeros_like(x)
    for head in range(heads):
        between = np.zeros((places, places, size, size))
        for plane in range(planes):
            coordinate = plane % coordinates
            count = heads * len(range(coordinate, planes, coordinates))
            share = (plane // coordinates * heads + head) / (count - 1)
            frequency = slowest ** (1 - share) * fastest**share
            angle = frequency * (locations[None, :, coordinate] - locations[:, None, coordinate])
            one, other = plane, plane + planes
            between[..., one, one] = between[..., other, other] = np.cos(angle)
            between[..., one, other], between[..., other, one] = -np.sin(angle), np.sin(angle)
        own = slice(head * size, (head + 1) * size)
        scores = np.einsum("id,ijde,je->ij", q[:, own], between, k[:, own])
        weights = np.exp(scores / np.sqrt(size)) * seen
        weights /= weights.sum(-1, keepdims=True)
        out[:, own] = np.einsum("ij,ijde,je->id", weights, between, v[:, own])
    return linear(p["project_out"], out)


def transformer(p, x, c, heads, seen=None, attend=None):
    attend = attention if attend is None else attend
    for block in layers(p["blocks"]):
        shift, scale, gate, shift_2, scale_2, gate_2 = np.split(modulation(block["modulation"], c), 6)
        x = x + gate * attend(block["attention"], norm(x) * (1 + scale) + shift, heads, seen)
        y = norm(x) * (1 + scale_2) + shift_2
        x = x + gate_2 * linear(block["down"], gelu(linear(block["up"], y)))
    shift, scale = np.split(modulation(p["head"]["modulation"], c), 2)
    return linear(p["head"]["dense"], norm(x) * (1 + scale) + shift)


def perceptron(net, p, x, t, condition):
    if net.vocabulary:
        x = np.eye(net.vocabulary + 1)[x]
    c = context(p["context"], t, condition)
    y = linear(p["encoder"], x.reshape(-1)) + c
    for block in layers(p["blocks"]):
        shift, scale = np.split(modulation(block["modulation"], c), 2)
        y = y + linear(block["down"], silu(linear(block["up"], norm(y) * (1 + scale) + shift)))
    return linear(p["head"], silu(y))


def position(place, width):
    """Waves of one position along one axis."""
    angles = place / 10_000.0 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)])


def diffusion_transformer(net, p, x, t, condition):
    """Patches cut and put back one by one."""
    c, width = context(p["context"], t, condition), net.width
    if net.vocabulary:
        x = p["tokens"][x]
    if len(net.patch) == 1:
        size = net.patch[0]
        x = x.reshape(len(x), -1)
        starts = range(0, len(x), size)
        cut = np.stack([x[start : start + size].reshape(-1) for start in starts])
        where = np.stack([position(i, width) for i in range(len(cut))])
        return transformer(p, linear(p["encoder"], cut) + where, c, net.heads)
    (high, wide), (height, width_of_image) = net.patch, x.shape[:2]
    x = x.reshape(height, width_of_image, -1)
    corners = [(i, j) for i in range(0, height, high) for j in range(0, width_of_image, wide)]
    cut = np.stack([x[i : i + high, j : j + wide].reshape(-1) for i, j in corners])
    where = [np.concatenate([position(i // high, width // 2), position(j // wide, width // 2)]) for i, j in corners]
    y = transformer(p, linear(p["encoder"], cut) + np.stack(where), c, net.heads)
    image = np.zeros((height, width_of_image, y.shape[-1] // (high * wide)))
    for (i, j), patch in zip(corners, y, strict=True):
        image[i : i + high, j : j + wide] = patch.reshape(high, wide, -1)
    return image


def set_attention(net, p, x, t, condition):
    locations, there = condition
    if net.relative:

        def attend(p, x, heads, seen):
            return relative_attention(p, x, heads, seen, locations, net.wavelengths)

        x = linear(p["encoder"], x.reshape(len(x), -1))
        return transformer(p, x, context(p["context"], t), net.heads, there, attend) * there[:, None]
    shortest, longest = net.wavelengths
    turns = [waves(column, 2 * np.pi / longest, 2 * np.pi / shortest, 16) for column in locations.T]
    x = linear(p["encoder"], np.concatenate([x.reshape(len(x), -1), *turns], -1))
    return transformer(p, x, context(p["context"], t), net.heads, there) * there[:, None]


def convolution(p, x, stride=1):
    """The sum over a window with zeros around; for stride 2 windows begin at every second place."""
    kernel = p["kernel"]
    size = len(kernel)
    before = (size - 1) // 2 if stride == 1 else 0
    padded = np.pad(x, ((before, size - 1 - before),) * 2 + ((0, 0),))
    out = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            out += padded[i : i + x.shape[0], j : j + x.shape[1]] @ kernel[i, j]
    return out[::stride, ::stride] + p["bias"]


def group_norm(p, x, groups):
    out = np.zeros_like(x)
    for channels in np.split(np.arange(x.shape[-1]), groups):
        part = x[..., channels]
        out[..., channels] = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
    return out * p["scale"] + p["bias"]


def unet(net, p, x, t, condition):
    c = context(p["context"], t, condition)
    if net.vocabulary:
        x = p["tokens"][x]

    def blocks(name, x):
        for block in layers(p[name]):
            y = convolution(block["conv_in"], silu(group_norm(block["norm_in"], x, net.groups)))
            shift, scale = np.split(modulation(block["modulation"], c), 2)
            y = group_norm(block["norm_out"], y, net.groups) * (1 + scale) + shift
            x = x + convolution(block["conv_out"], silu(y))
            if "attention" in block:
                y = group_norm(block["norm_attention"], x, net.groups).reshape(-1, x.shape[-1])
                x = x + attention(block["attention"], y, net.heads).reshape(x.shape)
        return x

    x = x.reshape(*x.shape[:2], -1)
    x = blocks("blocks_down_0", convolution(p["encoder"], x))
    kept = [x]
    for level in range(1, len(net.multiples)):
        x = blocks(f"blocks_down_{level}", convolution(p[f"down_{level}"], x, 2))
        kept.append(x)
    for level in reversed(range(len(net.multiples) - 1)):
        x = convolution(p[f"up_{level}"], x.repeat(2, 0).repeat(2, 1))
        x = convolution(p[f"join_{level}"], np.concatenate([x, kept[level]], -1))
        x = blocks(f"blocks_up_{level}", x)
    return convolution(p["head"], silu(group_norm(p["norm"], x, net.groups)))


REFERENCES = {function.__name__: function for function in (perceptron, diffusion_transformer, set_attention, unet)}
