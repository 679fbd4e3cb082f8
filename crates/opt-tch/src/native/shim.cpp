// What opt-tch needs of libtorch and tch does not bind: calls of any operator by its schema
// through the dispatcher, gradients of a recorded call, and a few global settings.
//
// Every function catches what libtorch throws and returns a failure; the message is then had
// from opt_tch_last_error, on the same thread.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include <cstdint>
#include <optional>
#include <string>

namespace {

thread_local std::string last_error;

// Mirrors native::Raw in Rust.
struct Arg {
  int32_t tag;
  int32_t flag;
  int64_t integer;
  double real;
  const void* data;
  size_t len;
};

enum Tag : int32_t {
  kNone = 0,
  kTensor = 1,
  kInt = 2,
  kDouble = 3,
  kBool = 4,
  kInts = 5,
  kBools = 6,
  kTensors = 7,
  kString = 9,
  kDevice = 10,
};

// tch numbers devices so: -1 is the processor, -2 MPS, from 0 on CUDA.
c10::Device device_of(int64_t index) {
  if (index == -1) return c10::Device(c10::kCPU);
  if (index == -2) return c10::Device(c10::kMPS, 0);
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

c10::IValue value_of(const Arg& arg) {
  switch (arg.tag) {
    case kNone:
      return c10::IValue();
    case kTensor:
      return *static_cast<const at::Tensor*>(arg.data);
    case kInt:
      return arg.integer;
    case kDouble:
      return arg.real;
    case kBool:
      return arg.flag != 0;
    case kInts: {
      auto p = static_cast<const int64_t*>(arg.data);
      return c10::List<int64_t>(c10::IntArrayRef(p, arg.len));
    }
    case kBools: {
      auto p = static_cast<const bool*>(arg.data);
      c10::List<bool> list;
      list.reserve(arg.len);
      for (size_t i = 0; i < arg.len; i++) list.push_back(p[i]);
      return list;
    }
    case kTensors: {
      auto p = static_cast<const at::Tensor* const*>(arg.data);
      c10::List<at::Tensor> list;
      list.reserve(arg.len);
      for (size_t i = 0; i < arg.len; i++) list.push_back(*p[i]);
      return list;
    }
    case kString:
      return std::string(static_cast<const char*>(arg.data), arg.len);
    case kDevice:
      return device_of(arg.integer);
    default:
      TORCH_CHECK(false, "unknown argument tag ", arg.tag);
  }
}

template <typename F>
int guarded(F&& f) noexcept {
  try {
    return f();
  } catch (const c10::Error& e) {
    last_error = e.what_without_backtrace();
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "an unknown C++ exception";
  }
  return -1;
}

void push(const c10::IValue& value, at::Tensor** outs, size_t capacity, int& count) {
  if (value.isTensorList()) {
    for (const at::Tensor& t : value.toTensorVector()) {
      TORCH_CHECK(static_cast<size_t>(count) < capacity, "more results than there is room for");
      outs[count++] = new at::Tensor(t);
    }
    return;
  }
  TORCH_CHECK(static_cast<size_t>(count) < capacity, "more results than there is room for");
  // Results that are no tensors keep their place.
  outs[count++] = value.isTensor() ? new at::Tensor(value.toTensor()) : nullptr;
}

int call(const c10::OperatorHandle& op, const Arg* args, size_t len, at::Tensor** outs,
         size_t capacity) {
  const auto& schema = op.schema();
  const auto& wanted = schema.arguments();
  TORCH_CHECK(len <= wanted.size(), schema.name(), " takes ", wanted.size(), " arguments, ",
              len, " were given");
  torch::jit::Stack stack;
  stack.reserve(wanted.size());
  for (size_t i = 0; i < len; i++) stack.push_back(value_of(args[i]));
  for (size_t i = len; i < wanted.size(); i++) {
    const auto& fallback = wanted[i].default_value();
    TORCH_CHECK(fallback.has_value(), schema.name(), " needs its argument ", wanted[i].name());
    stack.push_back(*fallback);
  }
  op.callBoxed(stack);
  int count = 0;
  for (const auto& value : stack) push(value, outs, capacity, count);
  return count;
}

}  // namespace

extern "C" {

const char* opt_tch_last_error() { return last_error.c_str(); }

const char* opt_tch_version() { return TORCH_VERSION; }

// The operator of a name such as "aten::add" and an overload name; null if there is none. Valid
// as long as the process runs.
const void* opt_tch_find(const char* name, const char* overload) {
  const void* found = nullptr;
  guarded([&] {
    auto op = c10::Dispatcher::singleton().findSchema({name, overload});
    if (op.has_value()) found = new c10::OperatorHandle(*op);
    return 0;
  });
  return found;
}

// Calls an operator; missing last arguments take the schema's defaults. Returns the number of
// results or -1. Unless recorded, no autograd code is passed through.
int opt_tch_call(const void* op, const Arg* args, size_t len, int recorded, at::Tensor** outs,
                 size_t capacity) {
  int count = guarded([&] {
    const auto& handle = *static_cast<const c10::OperatorHandle*>(op);
    if (recorded) {
      c10::AutoGradMode on(true);
      return call(handle, args, len, outs, capacity);
    }
    at::AutoDispatchBelowADInplaceOrView below;
    return call(handle, args, len, outs, capacity);
  });
  return count;
}

// A tensor of the same content that recorded calls can be differentiated by.
at::Tensor* opt_tch_leaf(const at::Tensor* t) {
  at::Tensor* leaf = nullptr;
  guarded([&] {
    leaf = new at::Tensor(t->detach().requires_grad_(true));
    return 0;
  });
  return leaf;
}

// The gradients by `inputs` of what recorded calls gave, from those by `outputs`; null where an
// input had no part in it. Returns 0, or -1 for a failure.
int opt_tch_grad(at::Tensor* const* outputs, at::Tensor* const* gradients, size_t n,
                 at::Tensor* const* inputs, size_t m, at::Tensor** results) {
  return guarded([&] {
    torch::autograd::variable_list out, grad, in;
    for (size_t i = 0; i < n; i++) {
      out.push_back(*outputs[i]);
      grad.push_back(*gradients[i]);
    }
    for (size_t i = 0; i < m; i++) in.push_back(*inputs[i]);
    auto found = torch::autograd::grad(out, in, grad, false, false, true);
    for (size_t i = 0; i < m; i++) {
      results[i] = found[i].defined() ? new at::Tensor(found[i]) : nullptr;
    }
    return 0;
  });
}

// Whether f32 products on CUDA may round their factors to TF32.
void opt_tch_set_tf32(int allowed) {
  guarded([&] {
    at::globalContext().setAllowTF32CuDNN(allowed != 0);
    at::globalContext().setAllowTF32CuBLAS(allowed != 0);
    return 0;
  });
}

// Free and total bytes of a device other than the processor.
int opt_tch_memory(int device, uint64_t* free, uint64_t* total) {
  return guarded([&] {
    auto d = device_of(device);
    auto info = at::getDeviceAllocator(d.type())->getMemoryInfo(d.index());
    *free = info.first;
    *total = info.second;
    return 0;
  });
}

// Gives cached blocks of a device back to it.
int opt_tch_empty_cache(int device) {
  return guarded([&] {
    at::getDeviceAllocator(device_of(device).type())->emptyCache();
    return 0;
  });
}

int opt_tch_synchronize(int device) {
  return guarded([&] {
    if (device == -1) return 0;
    const auto d = device_of(device);
    c10::impl::VirtualGuardImpl(d.type()).synchronizeDevice(d.index());
    return 0;
  });
}

int opt_tch_has_mps() { return at::globalContext().hasMPS() ? 1 : 0; }

int64_t opt_tch_cudnn_version() {
  int64_t version = 0;
  guarded([&] {
    if (at::globalContext().hasCuDNN()) version = at::globalContext().versionCuDNN();
    return 0;
  });
  return version;
}

}  // extern "C"
