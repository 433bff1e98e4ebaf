//! A module's place in the tree, and the weights that hang on it.

use super::hook::{BroughtWeights, Hook, NamedHook, Next};
use crate::error::{Error, Result};
use crate::torch::{DeviceExt, KindExt, MappedTensor, MemoryFormat};
use std::any::Any;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tch::{Device, Kind, Tensor};

/// A struct of layers that knows its place in the tree.
pub trait Module {
    /// The module's place.
    fn node(&self) -> &Node;
}

/// One weight. Clones share the slot, so a hook can swap the tensor under a layer.
#[derive(Clone, Debug)]
pub struct Param(Arc<Slot>);

#[derive(Debug)]
struct Slot {
    tensor: Mutex<Tensor>,
    origin: Option<MappedTensor>,
}

impl Param {
    pub(super) fn new(tensor: Tensor, origin: Option<MappedTensor>) -> Self {
        Self(Arc::new(Slot { tensor: Mutex::new(tensor), origin }))
    }

    /// The place in a file that the weight was loaded from; none if it came from elsewhere. The tensor in the slot may
    /// have been cast, moved or changed since.
    #[must_use]
    pub fn origin(&self) -> Option<&MappedTensor> {
        self.0.origin.as_ref()
    }

    /// A handle to the tensor in the slot; nothing is copied.
    pub fn get(&self) -> Tensor {
        lock(&self.0.tensor).shallow_clone()
    }

    /// Puts `new` in the slot and hands back what was there.
    pub fn replace(&self, new: Tensor) -> Tensor {
        std::mem::replace(&mut lock(&self.0.tensor), new)
    }
}

/// What a module shares with whoever walks the tree. How it is written down says how the module computes.
pub(crate) trait Setting: Any + Debug + Send + Sync {}

impl<T: Any + Debug + Send + Sync> Setting for T {}

/// A module's place in the tree: path, class, weights, children, hooks. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    path: String,
    class: OnceLock<&'static str>,
    params: Mutex<Vec<(String, Param)>>,
    children: Mutex<Vec<(String, Node)>>,
    hooks: Mutex<Vec<NamedHook>>,
    setting: OnceLock<Arc<dyn Setting>>,
    /// Whether `hooks` holds any: what a forward without hooks looks at instead of taking the lock.
    hooked: AtomicBool,
}

impl Node {
    pub(super) fn new(path: String) -> Self {
        Self(Arc::new(Inner { path, ..Inner::default() }))
    }

    pub(super) fn set_class(&self, class: &'static str) {
        self.0.class.get_or_init(|| class);
    }

    pub(super) fn push_param(&self, name: &str, param: Param) {
        lock(&self.0.params).push((name.into(), param));
    }

    pub(super) fn attach(&self, setting: Arc<dyn Setting>) {
        self.0.setting.get_or_init(|| setting);
    }

    /// The child called `name`, made by `make` if there is none yet.
    pub(super) fn child_or(&self, name: String, make: impl FnOnce(String) -> Self) -> Self {
        let mut children = lock(&self.0.children);
        if let Some((_, child)) = children.iter().find(|(known, _)| *known == name) {
            return child.clone();
        }
        let child = make(join(self.path(), &name));
        children.push((name, child.clone()));
        child
    }

    /// Runs `forward` inside this node's hooks, and names this path in whatever error comes out.
    ///
    /// Pass what a hook may replace as `inputs`; capture the rest.
    ///
    /// # Errors
    /// Whatever `forward` or a hook fails with; [`Error::Arity`] for a hook that passes another number of tensors.
    pub fn call<const I: usize, const O: usize>(
        &self,
        inputs: [&Tensor; I],
        forward: impl Fn([&Tensor; I]) -> Result<[Tensor; O]>,
    ) -> Result<[Tensor; O]> {
        if !self.0.hooked.load(Ordering::Acquire) {
            return forward(inputs).map_err(|error| error.at(self.path()));
        }
        let hooks = lock(&self.0.hooks).clone();
        let forward = |inputs: &[Tensor]| match <&[Tensor; I]>::try_from(inputs) {
            Ok(inputs) => forward(inputs.each_ref()).map(Vec::from),
            Err(_) => Err(Error::Arity { expected: I, found: inputs.len() }),
        };
        Next { node: self, hooks: &hooks, forward: &forward }
            .run(&inputs.map(Tensor::shallow_clone))
            .and_then(|outputs| {
                outputs.try_into().map_err(|outputs: Vec<_>| Error::Arity { expected: O, found: outputs.len() })
            })
            .map_err(|error| error.at(self.path()))
    }

    /// As [`Node::call`], for modules that take or return a number of tensors that their configuration decides, such as
    /// a UNet's blocks with their skip connections.
    ///
    /// # Errors
    /// Whatever `forward` or a hook fails with; [`Error::Arity`] for a hook that passes another number of tensors in.
    pub fn call_many(
        &self,
        inputs: &[&Tensor],
        forward: impl Fn(&[&Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        if !self.0.hooked.load(Ordering::Acquire) {
            return forward(inputs).map_err(|error| error.at(self.path()));
        }
        let hooks = lock(&self.0.hooks).clone();
        let expected = inputs.len();
        let forward = |inputs: &[Tensor]| match inputs.len() {
            found if found != expected => Err(Error::Arity { expected, found }),
            _ => forward(&inputs.iter().collect::<Vec<_>>()),
        };
        let inputs: Vec<_> = inputs.iter().map(|input| input.shallow_clone()).collect();
        Next { node: self, hooks: &hooks, forward: &forward }.run(&inputs).map_err(|error| error.at(self.path()))
    }

    /// A number that no other place has while this one is there.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// The dotted path from the model, `""` for the model itself.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// The struct's name, as in `config.json`'s `_class_name`; `"ModuleList"` for a bare container.
    #[must_use]
    pub fn class(&self) -> &'static str {
        self.0.class.get().copied().unwrap_or("ModuleList")
    }

    /// The children, by name, in the order in which they were made.
    #[must_use]
    pub fn children(&self) -> Vec<(String, Self)> {
        lock(&self.0.children).clone()
    }

    /// The node at `path` below this one, such as `down_blocks.0.resnets.1`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Self> {
        path.split('.').filter(|name| !name.is_empty()).try_fold(self.clone(), |node, name| {
            node.children().into_iter().find(|(known, _)| known == name).map(|(_, child)| child)
        })
    }

    /// This node and everything below it, parents first.
    #[must_use]
    pub fn walk(&self) -> Vec<Self> {
        let mut nodes = vec![self.clone()];
        nodes.extend(self.children().iter().flat_map(|(_, child)| child.walk()));
        nodes
    }

    /// The weights of this node alone, by name.
    #[must_use]
    pub fn own_params(&self) -> Vec<(String, Param)> {
        lock(&self.0.params).clone()
    }

    /// Every weight at or below this node, keyed as in the checkpoint, in the order of construction.
    #[must_use]
    pub fn params(&self) -> Vec<(String, Param)> {
        let own = |node: Self| {
            let params = node.own_params();
            params.into_iter().map(move |(name, param)| (join(node.path(), &name), param))
        };
        self.walk().into_iter().flat_map(own).collect()
    }

    /// The weights that hooks at or below this node hold of their own, such as those of LoRAs: [`Hook::weights`].
    #[must_use]
    pub fn hook_weights(&self) -> Vec<Param> {
        self.walk().iter().flat_map(Self::own_hook_weights).collect()
    }

    /// As [`Node::hook_weights`], of the hooks around this node alone.
    #[must_use]
    pub fn own_hook_weights(&self) -> Vec<Param> {
        let hooks = lock(&self.0.hooks).clone();
        hooks.iter().flat_map(|named| named.hook.weights()).collect()
    }

    /// Every weight's tensor at or below this node, keyed as in the checkpoint. Nothing is copied.
    #[must_use]
    pub fn state_dict(&self) -> Vec<(String, Tensor)> {
        self.params().into_iter().map(|(key, param)| (key, param.get())).collect()
    }

    /// The number of elements in all weights at or below this node.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.params().iter().map(|(_, param)| param.get().numel()).sum()
    }

    /// The setting that this node's module shares with whoever walks the tree, if it has one of this type.
    #[must_use]
    pub fn setting<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let setting: Arc<dyn Any + Send + Sync> = self.0.setting.get()?.clone();
        setting.downcast().ok()
    }

    /// The settings of this node and of all below it, by their path from here.
    pub(crate) fn settings(&self) -> Vec<(String, Arc<dyn Setting>)> {
        let setting = |node: Self| Some((self.relative(node.path()).to_string(), node.0.setting.get()?.clone()));
        self.walk().into_iter().filter_map(setting).collect()
    }

    /// Every weight at or below this node, by its path from here, in the order of construction.
    pub(crate) fn relative_params(&self) -> Vec<(String, Param)> {
        self.params().into_iter().map(|(key, param)| (self.relative(&key).to_string(), param)).collect()
    }

    /// What follows this node's path in `path`.
    fn relative<'a>(&self, path: &'a str) -> &'a str {
        path.strip_prefix(self.path()).unwrap_or(path).trim_start_matches('.')
    }

    /// The dtype that is computed in: what a hook says that casts weights, or else that of the first floating-point
    /// weight; float32 if there is none.
    #[must_use]
    pub fn dtype(&self) -> Kind {
        let computed = self.walk().iter().find_map(|node| node.find_in_hooks(|hook| hook.compute_dtype()));
        computed.unwrap_or_else(|| {
            let kinds = self.params().into_iter().map(|(_, param)| param.get().kind());
            kinds.into_iter().find(|kind| kind.is_floating_point()).unwrap_or(Kind::Float)
        })
    }

    /// Where a forward runs: where a hook takes the weights to, or else where they are.
    #[must_use]
    pub fn execution_device(&self) -> Device {
        let hooked = |node: &Self| node.find_in_hooks(|hook| hook.execution_device());
        self.walk().iter().find_map(hooked).unwrap_or_else(|| self.device())
    }

    /// What the hooks around this node take for weights during a forward, outermost first: [`Hook::brings`].
    #[must_use]
    pub fn brought_weights(&self, kind: Kind) -> Vec<BroughtWeights> {
        lock(&self.0.hooks).iter().map(|named| named.hook.brings(kind)).collect()
    }

    fn find_in_hooks<T>(&self, answer: impl Fn(&dyn Hook) -> Option<T>) -> Option<T> {
        if !self.0.hooked.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.0.hooks).iter().find_map(|named| answer(named.hook.as_ref()))
    }

    /// The device of the first weight; the CPU if there is none.
    #[must_use]
    pub fn device(&self) -> Device {
        self.params().first().map_or(Device::Cpu, |(_, param)| param.get().device())
    }

    /// Moves every weight to `device`; all of them, or none if one finds no room.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device has no room; [`Error::Unsupported`] or [`Error::Argument`] for one that is not
    /// there.
    pub fn to_device(&self, device: Device) -> Result<()> {
        device.check()?;
        let params = self.params().into_iter().map(|(_, param)| param).chain(self.hook_weights());
        let params: Vec<_> = params.collect();
        let moved = params.iter().map(|param| Ok(param.get().f_to_device(device)?)).collect::<Result<Vec<_>>>()?;
        for (param, tensor) in params.iter().zip(moved) {
            drop(param.replace(tensor));
        }
        Ok(())
    }

    /// Casts every floating-point weight to `kind`, one at a time.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where a copy has no room.
    pub fn to_kind(&self, kind: Kind) -> Result<()> {
        self.map(|tensor| {
            Ok(if tensor.kind().is_floating_point() { tensor.f_to_kind(kind)? } else { tensor.shallow_clone() })
        })
    }

    /// Lays every weight of four dimensions out in `format`, one at a time.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where a copy has no room.
    pub fn to_memory_format(&self, format: MemoryFormat) -> Result<()> {
        self.map(|tensor| if tensor.dim() == 4 { format.apply(tensor) } else { Ok(tensor.shallow_clone()) })
    }

    /// Replaces every weight by `change` of it, one at a time.
    fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<()> {
        for (key, param) in self.params() {
            let changed = change(&param.get()).map_err(|error| error.at(&key))?;
            drop(param.replace(changed));
        }
        for param in self.hook_weights() {
            let changed = change(&param.get()).map_err(|error| error.at(self.path()))?;
            drop(param.replace(changed));
        }
        Ok(())
    }

    /// Puts `hook` around this node, inside the hooks that are there already. One that has its name is replaced.
    pub fn add_hook(&self, name: &str, hook: impl Hook + 'static) {
        let mut hooks = lock(&self.0.hooks);
        hooks.retain(|known| known.name != name);
        hooks.push(NamedHook { name: name.into(), hook: Arc::new(hook) });
        self.0.hooked.store(true, Ordering::Release);
    }

    /// As [`Node::add_hook`], outside the hooks that are there already.
    pub fn add_outer_hook(&self, name: &str, hook: impl Hook + 'static) {
        let mut hooks = lock(&self.0.hooks);
        hooks.retain(|known| known.name != name);
        hooks.insert(0, NamedHook { name: name.into(), hook: Arc::new(hook) });
        self.0.hooked.store(true, Ordering::Release);
    }

    /// Takes the hook called `name` off this node; says whether there was one.
    pub fn remove_hook(&self, name: &str) -> bool {
        let mut hooks = lock(&self.0.hooks);
        let before = hooks.len();
        hooks.retain(|known| known.name != name);
        self.0.hooked.store(!hooks.is_empty(), Ordering::Release);
        hooks.len() < before
    }

    /// As [`Node::remove_hook`], once the hook has undone what was done to the weights for it.
    ///
    /// # Errors
    /// If that cannot be undone; the hook stays then.
    pub fn detach_hook(&self, name: &str) -> Result<bool> {
        self.hook(name).map_or(Ok(()), |hook| hook.detach())?;
        Ok(self.remove_hook(name))
    }

    /// The hook called `name` around this node.
    #[must_use]
    pub fn hook(&self, name: &str) -> Option<Arc<dyn Hook>> {
        lock(&self.0.hooks).iter().find(|known| known.name == name).map(|known| known.hook.clone())
    }

    /// The names of the hooks around this node, outermost first.
    #[must_use]
    pub fn hook_names(&self) -> Vec<String> {
        lock(&self.0.hooks).iter().map(|hook| hook.name.clone()).collect()
    }
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

/// A slot whose holder panicked still holds a whole value, so the poison says nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
