//! What layers and kernels take. The workspaces are those that a [`MemoryTracker`](crate::torch::MemoryTracker) saw
//! libtorch 2.11 ask for on the CPU.

use super::shadow::{Arena, Kernels, Shadow};
use crate::error::{Error, Result};
use crate::models::attention_processor::AttentionProcessor;
use crate::nn::{Node, uses_winograd, weights_prepack};
use std::rc::Rc;
use tch::Kind;

/// The module below `node` at `path`.
pub(super) fn child(node: &Node, path: &str) -> Result<Node> {
    node.get(path).ok_or_else(|| {
        Error::Unsupported(format!("memory cannot be estimated: there is no `{path}` below `{}`", node.path()))
    })
}

/// The modules below `node` in the list `name`, in order; none if there is no such list.
pub(super) fn list(node: &Node, name: &str) -> Vec<Node> {
    node.get(name).map(|list| list.children().into_iter().map(|(_, child)| child).collect()).unwrap_or_default()
}

/// The shape of a layer's weight, and whether its channels come last in memory.
fn weight(node: &Node) -> Result<(Vec<i64>, bool)> {
    let weight = node.own_params().into_iter().find(|(name, _)| name == "weight").map(|(_, param)| param.get());
    let weight = weight
        .ok_or_else(|| Error::Unsupported(format!("memory cannot be estimated: `{}` has no weight", node.path())))?;
    let (shape, stride) = (weight.size(), weight.stride());
    let last = matches!((&shape[..], &stride[..]), ([_, c, ..], [_, 1, _, s]) if *c > 1 && s == c);
    Ok((shape, last))
}

/// What `shim/winograd.cpp` takes for so many tiles: kernels, tiles and products as 36 matrices each.
fn winograd(
    arena: &Rc<Arena>,
    [inputs, outputs]: [i64; 2],
    tiles: i64,
    output: impl FnOnce() -> Shadow,
    source: Option<Shadow>,
) -> Shadow {
    let (block, chunk) = (tiles.min(256), if tiles <= 256 { outputs.min(64) } else { outputs });
    let planes = |rows: i64, columns: i64| arena.bytes(36 * ((rows * columns + 15) / 16 * 16 + 16) * arena.element());
    let output = output().laid_out(true);
    let _workspaces = [planes(chunk, inputs), planes(block, inputs), planes(block, chunk)];
    drop(source);
    output
}

/// A convolution with as many zeros around the picture as keep its size, up to `stride`.
pub(super) fn conv(node: &Node, input: &Shadow, stride: i64) -> Result<Shadow> {
    let arena = input.arena();
    let _visit = arena.enter(node);
    let (shape, weight_last) = weight(node)?;
    let channels_last = weight_last || input.is_channels_last();
    let [outputs, inputs, kernel, _] = <[i64; 4]>::try_from(shape.as_slice())
        .map_err(|_| Error::Shape(format!("`{}` is no convolution over pictures", node.path())))?;
    let [batch, _, height, width] = input.size4()?;
    let (rows, columns) = ((height + stride - 1) / stride, (width + stride - 1) / stride);
    let output = || arena.tensor(&[batch, outputs, rows, columns]).laid_out(channels_last);
    let Kernels::Host { threads, lanes } = arena.kernels else { return Ok(output()) };
    let (taken, pixels) = (batch * inputs * height * width, batch * rows * columns);
    let float = arena.kind == Kind::Float;
    let blocks = match arena.kind {
        Kind::Float => {
            (stride > 1 || batch >= 16 || kernel != 1 || threads > 1) && (kernel > 3 || batch > 1 || taken > 20480)
        }
        Kind::BFloat16 => lanes > 8,
        _ => false,
    };
    if uses_winograd(node) && float && stride == 1 && kernel == 3 && outputs % 8 == 0 && inputs % 8 == 0 {
        let tiles = batch * ((height + 3) / 4) * ((width + 3) / 4);
        if tiles >= 32 {
            let source = (!input.is_channels_last()).then(|| input.like());
            let _weights = (!weight_last).then(|| arena.bytes(outputs * inputs * 9 * arena.element()));
            return Ok(winograd(
                arena,
                [inputs, outputs],
                tiles,
                || arena.tensor(&[batch, outputs, rows, columns]),
                source,
            ));
        }
    }
    let pad = |channels: i64| (channels + lanes - 1) / lanes * lanes;
    // Packed weights take no workspace, but stay.
    let packs = blocks && weights_prepack(node).is_some();
    if packs {
        arena.pack(node, outputs * inputs * kernel * kernel);
    }
    if blocks && channels_last && packs {
        return Ok(output());
    }
    if blocks && channels_last {
        let _weights = arena.bytes(outputs * inputs * kernel * kernel * arena.element());
        return Ok(output());
    }
    if !blocks {
        // The picture's patches as columns of a matrix, unless they are its pixels.
        let unfolds = kernel > 1 || stride > 1;
        let patches = if unfolds { pixels * inputs * kernel * kernel } else { 0 };
        let _patches = arena.bytes(patches * arena.element());
        return Ok(output());
    }
    // oneDNN computes on blocks of as many channels as a vector has lanes, and lays its result out anew at the end.
    let first = float && inputs <= 3;
    let source = if first { 0 } else { batch * pad(inputs) * height * width };
    let weights = pad(outputs) * if first { inputs } else { pad(inputs) } * kernel * kernel;
    let blocked = arena.bytes(pixels * pad(outputs) * arena.element());
    drop(arena.bytes((source + if packs { 0 } else { weights }) * arena.element()));
    let output = output();
    drop(blocked);
    Ok(output)
}

/// A linear map of `[batch, tokens, channels]`. Rows that do not lie one after the other (`strided`) are copied first.
pub(super) fn linear(node: &Node, input: &Shadow, strided: bool) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let [batch, tokens, _] = input.size3()?;
    let outputs = weight(node)?.0.first().copied().unwrap_or_default();
    let _rows = strided.then(|| input.like());
    Ok(input.arena().tensor(&[batch, tokens, outputs]))
}

/// A group norm: its output, and each group's mean and deviation.
pub(super) fn group_norm(node: &Node, input: &Shadow) -> Shadow {
    let _visit = input.arena().enter(node);
    input.like()
}

/// A layer norm of `[batch, tokens, channels]`: its output, and each token's mean and deviation.
pub(super) fn layer_norm(node: &Node, input: &Shadow, strided: bool) -> Result<Shadow> {
    let _visit = input.arena().enter(node);
    let [batch, tokens, _] = input.size3()?;
    let _rows = strided.then(|| input.like());
    let _moments = input.arena().bytes(2 * batch * tokens * input.arena().element());
    Ok(input.like())
}

/// Twice the height and width, or just `size`.
pub(super) fn upsample(input: &Shadow, size: Option<[i64; 2]>) -> Result<Shadow> {
    let [batch, channels, height, width] = input.size4()?;
    let [rows, columns] = size.unwrap_or([2 * height, 2 * width]);
    let channels_last = input.is_channels_last();
    let output = input.arena().tensor(&[batch, channels, rows, columns]).laid_out(channels_last);
    // The kernel for small pictures puts channels last, and back again.
    if input.arena().kernels != Kernels::Device && rows + columns <= 128 && channels > 3 && !channels_last {
        let _copies = (input.like(), output.like());
    }
    Ok(output)
}

/// The heads' weighted sum of values, as `processor` computes it. The three are `[batch, tokens, channels]` in memory.
pub(super) fn attend(
    query: &Shadow,
    key: &Shadow,
    value: &Shadow,
    heads: i64,
    processor: AttentionProcessor,
) -> Result<Shadow> {
    match processor {
        AttentionProcessor::Sliced(size) => sliced(query, key, value, heads, size),
        _ => fused(query, key, heads),
    }
}

/// libtorch's flash attention.
fn fused(query: &Shadow, key: &Shadow, heads: i64) -> Result<Shadow> {
    let arena = query.arena();
    let ([batch, queries, channels], [_, keys, _]) = (query.size3()?, key.size3()?);
    let output = query.like();
    let _sums = arena.bytes(batch * heads * queries * 4);
    if let Kernels::Host { threads, .. } = arena.kernels {
        let rows = match queries {
            768.. => 256,
            192.. => 64,
            _ => 32,
        };
        let (rows, columns) = (queries.min(rows), keys.min(512));
        let scores = threads * rows * (columns + 2 + channels / heads.max(1)) * 4;
        let reduced = if arena.element() < 4 { threads * rows * columns * arena.element() } else { 0 };
        let _scores = arena.bytes(scores + reduced);
    }
    Ok(output)
}

/// `size` heads after one another, of all items of the batch.
fn sliced(query: &Shadow, key: &Shadow, value: &Shadow, heads: i64, size: i64) -> Result<Shadow> {
    let arena = query.arena();
    let ([batch, queries, channels], [_, keys, _]) = (query.size3()?, key.size3()?);
    // The heads of one picture are a view; those of several are copied.
    let _copies = (batch > 1).then(|| [query.like(), key.like(), value.like()]);
    let output = query.like();
    let rows = size.min(batch * heads);
    let scores = |arena: &Rc<Arena>| arena.tensor(&[rows, queries, keys]);
    let raw = {
        let _bias = scores(arena);
        scores(arena)
    };
    let weights = scores(arena);
    drop(raw);
    let _slice = arena.tensor(&[rows, queries, channels / heads.max(1)]);
    drop(weights);
    Ok(output)
}
