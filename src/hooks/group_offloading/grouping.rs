//! Which weights travel together.

use super::{GroupOffloading, GroupOffloadingType};
use crate::nn::{Node, Param};

/// The classes that are groups of their own at leaf level.
const LEAVES: [&str; 3] = ["Conv2d", "Linear", "Embedding"];

/// Weights that are on the device together.
#[derive(Clone, Debug)]
pub struct OffloadGroup {
    /// diffusers' name of the group, such as `down_blocks_0_1`.
    pub id: String,
    /// The modules that belong to it with everything below them; none for weights beside a model's modules.
    pub modules: Vec<Node>,
    /// The module whose forward brings the weights.
    pub onload_leader: Node,
    /// The module at the end of whose forward they leave.
    pub offload_leader: Node,
    /// All its weights, keyed as in the checkpoint.
    pub params: Vec<(String, Param)>,
}

impl OffloadGroup {
    /// The modules that carry the group's hook: its leader alone, or all blocks of a run of them.
    pub(super) fn hooked(&self) -> Vec<Node> {
        match self.onload_leader.path() == self.offload_leader.path() {
            true => vec![self.onload_leader.clone()],
            false => self.modules.clone(),
        }
    }

    fn new(id: String, modules: Vec<Node>, leaders: [&Node; 2]) -> Self {
        let params = modules.iter().flat_map(Node::params).collect();
        let [onload_leader, offload_leader] = leaders.map(Node::clone);
        Self { id, modules, onload_leader, offload_leader, params }
    }
}

pub(super) fn groups(node: &Node, options: &GroupOffloading) -> Vec<OffloadGroup> {
    let mut groups = vec![];
    match options.offload_type {
        GroupOffloadingType::BlockLevel => block_level(node, options, "", &mut groups),
        GroupOffloadingType::LeafLevel => leaf_level(node, &mut groups),
    }
    groups
}

/// Only what is directly below `node` is cut: blocks of lists in runs, and the modules that are to be cut themselves.
fn block_level(node: &Node, options: &GroupOffloading, prefix: &str, groups: &mut Vec<OffloadGroup>) {
    let (mut matched, mut rest) = (vec![], vec![]);
    for (name, child) in node.children() {
        if options.block_modules.contains(&name) {
            block_level(&child, options, &format!("{prefix}{name}."), groups);
        } else if is_list(&child) {
            let blocks: Vec<_> = child.children().into_iter().map(|(_, block)| block).collect();
            let length = options.num_blocks_per_group;
            for (number, run) in blocks.chunks(length).enumerate() {
                let first = number * length;
                let id = format!("{prefix}{name}_{first}_{}", first + run.len() - 1);
                if let (Some(onload), Some(offload)) = (run.first(), run.last()) {
                    matched.push(OffloadGroup::new(id, run.to_vec(), [onload, offload]));
                }
            }
        } else {
            rest.push(child);
        }
    }
    groups.append(&mut matched);
    let mut unmatched = OffloadGroup::new(format!("{prefix}{}_unmatched_group", node.class()), rest, [node, node]);
    unmatched.params.splice(0..0, own_params(node));
    if !unmatched.params.is_empty() {
        groups.push(unmatched);
    }
}

fn leaf_level(node: &Node, groups: &mut Vec<OffloadGroup>) {
    let id = |member: &Node| {
        let path = member.path().strip_prefix(node.path()).unwrap_or(member.path());
        path.trim_start_matches('.').to_string()
    };
    let (leaves, others): (Vec<_>, Vec<_>) = node
        .walk()
        .into_iter()
        .filter(|member| !member.own_params().is_empty())
        .partition(|member| LEAVES.contains(&member.class()));
    groups.extend(leaves.into_iter().map(|leaf| OffloadGroup::new(id(&leaf), vec![leaf.clone()], [&leaf, &leaf])));
    groups.extend(others.into_iter().map(|other| {
        let params = own_params(&other);
        OffloadGroup { params, ..OffloadGroup::new(id(&other), vec![], [&other, &other]) }
    }));
}

/// A bare container of numbered blocks: the twin of `torch.nn.ModuleList`.
fn is_list(node: &Node) -> bool {
    let numbered = |(name, _): &(String, Node)| name.bytes().all(|byte| byte.is_ascii_digit());
    node.class() == "ModuleList" && node.children().iter().all(numbered)
}

fn own_params(node: &Node) -> Vec<(String, Param)> {
    let key = |name: String| if node.path().is_empty() { name } else { format!("{}.{name}", node.path()) };
    node.own_params().into_iter().map(|(name, param)| (key(name), param)).collect()
}
