// TorchScript: tracing into a module with named weights, and running, changing and storing such modules.
#include "shim.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/serialization/import.h>

#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

using torch::jit::Module;
using Tensors = std::vector<at::Tensor>;

namespace {
at::Tensor& tensor_at(void* tensor) { return *static_cast<at::Tensor*>(tensor); }
Module& module_at(void* module) { return *static_cast<Module*>(module); }

at::Device device_at(int index) { return index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, index); }

// Weights by the dots in their names, in the order in which they come.
struct Tree {
  std::vector<std::pair<std::string, at::Tensor>> weights;
  std::vector<std::pair<std::string, Tree>> children;

  Tree& child(const std::string& name) {
    for (auto& [known, child] : children) {
      if (known == name) return child;
    }
    return children.emplace_back(name, Tree{}).second;
  }

  void insert(const std::string& path, const at::Tensor& weight) {
    auto dot = path.find('.');
    if (dot == std::string::npos) {
      weights.emplace_back(path, weight);
    } else {
      child(path.substr(0, dot)).insert(path.substr(dot + 1), weight);
    }
  }

  Module module(const std::string& class_name, const std::shared_ptr<torch::jit::CompilationUnit>& unit) const {
    Module module(c10::QualifiedName(class_name), unit, /*shouldMangle=*/true);
    module.register_attribute("training", c10::BoolType::get(), false);
    for (auto& [name, weight] : weights) module.register_parameter(name, weight, /*is_buffer=*/false);
    for (auto& [name, child] : children) {
      // A class cannot be called by a number.
      auto atom = isdigit(static_cast<unsigned char>(name[0])) ? "_" + name : name;
      module.register_module(name, child.module(class_name + "." + atom, unit));
    }
    return module;
  }
};

// Replaces each weight of the tree by `change` of it.
void change_weights(const Module& module, const std::function<at::Tensor(const at::Tensor&)>& change) {
  for (Module part : module.modules()) {
    std::vector<std::pair<std::string, at::Tensor>> weights;
    for (const auto& weight : part.named_parameters(/*recurse=*/false)) weights.emplace_back(weight.name, weight.value);
    for (const auto& buffer : part.named_buffers(/*recurse=*/false)) weights.emplace_back(buffer.name, buffer.value);
    for (auto& [name, weight] : weights) part.setattr(name, change(weight));
  }
}

// Gives weights that are views of something larger, such as a mapped file, memory of their own: a stored module holds
// the whole of what its tensors look at.
void own_memory(const Module& module) {
  change_weights(module, [](const at::Tensor& weight) {
    auto own = weight.numel() * weight.element_size();
    return weight.storage().nbytes() == own ? weight : weight.clone();
  });
}

// Constants with dimensions.
int count_tensors(torch::jit::Block& block) {
  using torch::jit::AttributeKind;
  int count = 0;
  for (auto* node : block.nodes()) {
    for (auto name : node->attributeNames()) {
      auto kind = node->kindOf(name);
      if (kind == AttributeKind::t) count += node->t(name).dim() > 0;
      if (kind == AttributeKind::ts) count += static_cast<int>(node->ts(name).size());
      if (kind == AttributeKind::ival) count += node->ival(name).isTensor() && node->ival(name).toTensor().dim() > 0;
    }
    for (auto* inner : node->blocks()) count += count_tensors(*inner);
  }
  return count;
}

void flatten(const c10::IValue& value, Tensors& tensors) {
  if (value.isTensor()) {
    tensors.push_back(value.toTensor());
  } else if (value.isTuple()) {
    for (const auto& element : value.toTupleRef().elements()) flatten(element, tensors);
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) tensors.push_back(tensor);
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) flatten(element, tensors);
  } else if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) flatten(entry.value(), tensors);
  } else {
    TORCH_CHECK(false, "the module returns a ", value.tagKind(), " where tensors are expected");
  }
}
}  // namespace

SHIM void* tds_tensors_new() { return new Tensors(); }
SHIM void tds_tensors_free(void* tensors) { delete static_cast<Tensors*>(tensors); }
SHIM void tds_tensors_push(void* tensors, void* tensor) { static_cast<Tensors*>(tensors)->push_back(tensor_at(tensor)); }
SHIM size_t tds_tensors_size(void* tensors) { return static_cast<Tensors*>(tensors)->size(); }
SHIM void* tds_tensors_get(void* tensors, size_t index) { return new at::Tensor((*static_cast<Tensors*>(tensors))[index]); }

// Runs the model: reads from the first list, pushes to the second, and returns whether it failed.
typedef int (*Forward)(void* context, void* inputs, void* outputs);

// `forward` has to use the very tensors in `weights`: another tensor becomes a constant of the trace.
SHIM int tds_jit_trace(const char* class_name, const char* const* weight_names, void* weights, const char* const* input_names,
                       void* inputs, Forward forward, void* context, void** out, char** error) {
  return guarded(error, [&] {
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    Tree tree;
    auto& tensors = *static_cast<Tensors*>(weights);
    for (size_t i = 0; i < tensors.size(); ++i) tree.insert(weight_names[i], tensors[i]);
    auto module = tree.module(std::string("__torch__.") + class_name, unit);

    torch::jit::Stack stack;
    std::vector<std::string> names;
    for (const auto& input : *static_cast<Tensors*>(inputs)) {
      names.emplace_back(input_names[names.size()]);
      stack.emplace_back(input);
    }
    auto run = [&](torch::jit::Stack arguments) -> torch::jit::Stack {
      Tensors given, made;
      for (const auto& argument : arguments) given.push_back(argument.toTensor());
      TORCH_CHECK(forward(context, &given, &made) == 0, "the model failed while it was traced");
      std::vector<c10::IValue> outputs(made.begin(), made.end());
      return {c10::ivalue::Tuple::create(std::move(outputs))};
    };
    auto nameless = [](const at::Tensor&) { return std::string(); };
    auto traced = torch::jit::tracer::trace(stack, run, nameless, /*strict=*/true, /*force_outplace=*/false, &module, names);
    auto graph = traced.first->graph;
    torch::jit::EliminateDeadCode(graph);
    c10::QualifiedName method(*module.type()->name(), "forward");
    module.type()->addMethod(unit->create_function(method, graph));
    // From here on, what is done to the traced module's weights is not done to the model's.
    change_weights(module, [](const at::Tensor& weight) { return weight.detach(); });
    *out = new Module(module);
  });
}

// `device` is -1 for the CPU, else the index of the CUDA device; `note` is what was stored with the module under `key`.
SHIM int tds_jit_load(const char* path, int device, const char* key, void** out, char** note, char** error) {
  return guarded(error, [&] {
    torch::jit::ExtraFilesMap extra{{key, ""}};
    auto module = torch::jit::load(path, device_at(device), extra);
    module.eval();
    *out = new Module(module);
    *note = strdup(extra[key].c_str());
  });
}

SHIM int tds_jit_save(void* module, const char* path, const char* key, const char* note, char** error) {
  return guarded(error, [&] {
    own_memory(module_at(module));
    module_at(module).save(path, {{key, note}});
  });
}

SHIM void tds_jit_free(void* module) { delete static_cast<Module*>(module); }

SHIM int tds_jit_forward(void* module, void* inputs, void* outputs, char** error) {
  return guarded(error, [&] {
    std::vector<c10::IValue> arguments;
    for (const auto& input : *static_cast<Tensors*>(inputs)) arguments.emplace_back(input);
    flatten(module_at(module).forward(std::move(arguments)), *static_cast<Tensors*>(outputs));
  });
}

SHIM int tds_jit_freeze(void* module, void** out, char** error) {
  return guarded(error, [&] {
    own_memory(module_at(module));
    *out = new Module(torch::jit::freeze(module_at(module)));
  });
}

SHIM int tds_jit_optimize_for_inference(void* module, void** out, char** error) {
  return guarded(error, [&] {
    auto copy = module_at(module);
    *out = new Module(torch::jit::optimize_for_inference(copy));
  });
}

SHIM int tds_jit_to_device(void* module, int device, char** error) {
  return guarded(error, [&] {
    change_weights(module_at(module), [&](const at::Tensor& weight) { return weight.to(device_at(device)); });
  });
}

SHIM int tds_jit_to_kind(void* module, int kind, char** error) {
  return guarded(error, [&] {
    change_weights(module_at(module), [&](const at::Tensor& weight) {
      return weight.is_floating_point() ? weight.to(static_cast<at::ScalarType>(kind)) : weight;
    });
  });
}

// As `tds_to_memory_format`, for weights of four dimensions.
SHIM int tds_jit_to_memory_format(void* module, int format, char** error) {
  return guarded(error, [&] {
    change_weights(module_at(module), [&](const at::Tensor& weight) {
      auto kind = weight.scalar_type();
      return weight.dim() == 4 ? weight.to(kind, false, false, static_cast<c10::MemoryFormat>(format)) : weight;
    });
  });
}

// Pushes the parameters; `names` holds theirs, a line each.
SHIM int tds_jit_parameters(void* module, void* parameters, char** names, char** error) {
  return guarded(error, [&] {
    std::ostringstream lines;
    for (const auto& parameter : module_at(module).named_parameters()) {
      static_cast<Tensors*>(parameters)->push_back(parameter.value);
      lines << parameter.name << '\n';
    }
    *names = strdup(lines.str().c_str());
  });
}

// Counts tensors with dimensions that `forward` holds as constants.
SHIM int tds_jit_tensor_constants(void* module, int* out, char** error) {
  return guarded(error, [&] {
    *out = count_tensors(*module_at(module).get_method("forward").graph()->block());
  });
}

// How many inputs `forward` takes beside the module itself.
SHIM int tds_jit_arity(void* module, int* out, char** error) {
  return guarded(error, [&] { *out = module_at(module).get_method("forward").num_inputs() - 1; });
}

SHIM int tds_jit_graph(void* module, char** out, char** error) {
  return guarded(error, [&] { *out = strdup(module_at(module).get_method("forward").graph()->toString(false).c_str()); });
}
