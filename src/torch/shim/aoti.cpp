// AOTInductor packages: what they say of themselves, their code, and their weights, which stay the caller's.
#include "shim.h"

#include <ATen/Context.h>
#include <ATen/ops/from_blob.h>
#include <caffe2/serialize/inline_container.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <string>
#include <unordered_map>
#include <vector>

using Tensors = std::vector<at::Tensor>;

namespace {
// The code of one model. The runtime never gives back the handles of weights that are the caller's, so it is given
// `slots`, which own no memory; binding other weights points them elsewhere.
struct Model {
  Model(const std::string& path, const std::string& name, c10::DeviceIndex device)
      : loader(path, name, /*run_single_threaded=*/false, /*num_runners=*/1, device) {}

  torch::inductor::AOTIModelPackageLoader loader;
  Tensors slots;
};

Model& model_at(void* model) { return *static_cast<Model*>(model); }

// The code names no library: it finds libtorch among what the whole process sees, where a program's own libraries are and
// those of an extension module of Python are not.
void show_libtorch() {
  Dl_info info;
  auto* symbol = reinterpret_cast<void*>(static_cast<at::Context& (*)()>(&at::globalContext));
  if (dladdr(symbol, &info) != 0) dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
}

void point(Model& model, const Tensors& weights) {
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto& weight = weights[i];
    auto* storage = model.slots[i].storage().unsafeGetStorageImpl();
    storage->set_data_ptr_noswap(at::DataPtr(weight.mutable_data_ptr(), weight.device()));
  }
  // The code has the addresses in a table, which any update makes anew.
  std::unordered_map<std::string, at::Tensor> none;
  model.loader.update_constant_buffer(none, /*use_inactive=*/false, /*validate_full_updates=*/false, /*user_managed=*/true);
}
}  // namespace

// The text stored in the package under `record`; empty if there is none.
SHIM int tds_aoti_record(const char* path, const char* record, char** out, char** error) {
  return guarded(error, [&] {
    caffe2::serialize::PyTorchStreamReader reader{std::string(path)};
    std::string text;
    if (reader.hasRecord(record)) {
      auto [data, size] = reader.getRecord(record);
      text.assign(static_cast<const char*>(data.get()), size);
    }
    *out = strdup(text.c_str());
  });
}

// `device` is -1 for the CPU, else the index of the CUDA device.
SHIM int tds_aoti_load(const char* path, const char* name, int device, void** out, char** error) {
  return guarded(error, [&] {
    show_libtorch();
    *out = new Model(path, name, static_cast<c10::DeviceIndex>(device));
  });
}

SHIM void tds_aoti_free(void* model) { delete static_cast<Model*>(model); }

// The names of the weights that the code asks for, a line each.
SHIM int tds_aoti_constants(void* model, char** out, char** error) {
  return guarded(error, [&] {
    std::string lines;
    for (const auto& name : model_at(model).loader.get_constant_fqns()) lines += name + "\n";
    *out = strdup(lines.c_str());
  });
}

// Has the code find `weights` under `names`, always the same in the same order. Nothing is copied or kept: the weights have
// to live while the code runs, and to have the shapes, dtypes and strides that it was made for.
SHIM int tds_aoti_bind(void* model, const char* const* names, void* weights, char** error) {
  return guarded(error, [&] {
    auto& self = model_at(model);
    auto& tensors = *static_cast<Tensors*>(weights);
    if (!self.slots.empty()) return point(self, tensors);
    std::unordered_map<std::string, at::Tensor> named;
    Tensors slots;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const auto& weight = tensors[i];
      slots.push_back(at::from_blob(weight.mutable_data_ptr(), weight.sizes(), weight.strides(), weight.options()));
      named.emplace(names[i], slots.back());
    }
    self.loader.load_constants(named, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
    self.slots = std::move(slots);
  });
}

// Reads from the first list, pushes to the second.
SHIM int tds_aoti_run(void* model, void* inputs, void* outputs, char** error) {
  return guarded(error, [&] {
    auto made = model_at(model).loader.run(*static_cast<Tensors*>(inputs));
    auto& list = *static_cast<Tensors*>(outputs);
    list.insert(list.end(), made.begin(), made.end());
  });
}
