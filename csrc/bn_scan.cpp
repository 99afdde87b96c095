// The scan of many layers, and the plan that makes repeated scans cheap.
//
// Unpacking a list of 212 tensors costs more than scanning them, so a plan keeps their handles. The data pointers are
// asked of the handles at every scan: a parameter whose storage was replaced is followed, never read through a stale one.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "launch.h"
#include "ops.h"

namespace avfast {

__attribute__((weak)) int bn_scan_cuda(const BnScanArgs&, void*);

namespace {

struct Plan {
  std::vector<Tensor> weight, bias, running_mean, running_var;
  std::vector<BnLayer> layers;        // as of the last scan
  std::unique_ptr<Tensor> on_device;  // the same table in CUDA memory
  int64_t channels = 0, widest = 0;
};

bool same(const BnLayer& a, const BnLayer& b) {
  return a.weight == b.weight && a.bias == b.bias && a.running_mean == b.running_mean && a.running_var == b.running_var &&
         a.channels == b.channels && a.offset == b.offset && a.affine_dtype == b.affine_dtype &&
         a.stats_dtype == b.stats_dtype;
}

const void* pointer(const Tensor& x, int64_t n, int64_t channels, const char* argument) {
  if (n == 0) return nullptr;
  STD_TORCH_CHECK(
      n == channels && x.is_contiguous() && is_aligned(x), "avfast.scan_batchnorm: ", argument, ": expected ", channels,
      " contiguous, aligned values, got ", n);
  return x.const_data_ptr();
}

// Reads every handle again; true if anything moved since the last time.
bool refresh(Plan& plan) {
  const size_t count = plan.weight.size();
  STD_TORCH_CHECK(
      plan.bias.size() == count && plan.running_mean.size() == count && plan.running_var.size() == count,
      "avfast.scan_batchnorm: expected one weight, bias, mean and variance per layer");
  bool changed = plan.layers.size() != count;
  plan.layers.resize(count);
  plan.channels = plan.widest = 0;
  for (size_t l = 0; l < count; ++l) {
    const Tensor &weight = plan.weight[l], &bias = plan.bias[l], &mean = plan.running_mean[l], &var = plan.running_var[l];
    const int64_t sizes[4] = {weight.numel(), bias.numel(), mean.numel(), var.numel()};
    const int64_t channels = *std::max_element(sizes, sizes + 4);
    const BnLayer now{
        pointer(weight, sizes[0], channels, "weight"),
        pointer(bias, sizes[1], channels, "bias"),
        pointer(mean, sizes[2], channels, "running_mean"),
        pointer(var, sizes[3], channels, "running_var"),
        channels,
        plan.channels,
        dtype_of(sizes[0] ? weight : bias, "scan_batchnorm", "weight"),
        dtype_of(sizes[3] ? var : mean, "scan_batchnorm", "running_var"),
    };
    changed = changed || !same(now, plan.layers[l]);
    plan.layers[l] = now;
    plan.channels += channels;
    plan.widest = std::max(plan.widest, channels);
  }
  return changed;
}

// Nearest float, built from integers where it is denormal: a host that flushes denormals must not flush a threshold.
float threshold_bits(double threshold) {
  if (!(threshold > 0)) return 0.0f;
  if (threshold >= 0x1p-126) return static_cast<float>(threshold);
  const uint32_t bits = static_cast<uint32_t>(std::nearbyint(threshold * 0x1p149));
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

Tensors4 run(Plan& plan, const Tensor& anchor, double threshold) {
  const bool changed = refresh(plan);
  const int64_t layers = int64_t(plan.layers.size());
  Tensor flags = allocate_vector(plan.channels, ScalarType::Byte, anchor);
  Tensor score = allocate_vector(plan.channels, ScalarType::Float, anchor);
  Tensor live = allocate_vector(plan.channels, ScalarType::Float, anchor);
  Tensor counts = allocate({layers, bn_counts}, {bn_counts, 1}, ScalarType::Int, anchor);
  BnScanArgs args{
      plan.layers.data(),
      layers,
      plan.widest,
      threshold_bits(threshold),
      static_cast<uint8_t*>(flags.mutable_data_ptr()),
      static_cast<float*>(score.mutable_data_ptr()),
      static_cast<float*>(live.mutable_data_ptr()),
      static_cast<int32_t*>(counts.mutable_data_ptr()),
  };
  launch(
      anchor, "scan_batchnorm",
      [&](const KernelTable& table, const Parallel& parallel) { table.bn_scan(args, parallel); },
      [&](void* stream) {
        const int64_t bytes = layers * int64_t(sizeof(BnLayer));
        if (changed || !plan.on_device) {
          const std::vector<int64_t> size{bytes}, stride{1};
          AtenTensorHandle handle;
          STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
              plan.layers.data(), 1, size.data(), stride.data(), 0, static_cast<int32_t>(ScalarType::Byte),
              aoti_torch_device_type_cpu(), 0, &handle));
          const Tensor host(handle);
          plan.on_device = std::make_unique<Tensor>(allocate({bytes}, {1}, ScalarType::Byte, anchor));
          torch::stable::copy_(*plan.on_device, host);
        }
        args.layers = static_cast<const BnLayer*>(plan.on_device->const_data_ptr());
        return bn_scan_cuda(args, stream);
      });
  return {flags, score, live, counts};
}

const Tensor& anchor_of(const Plan& plan) {
  for (const auto* list : {&plan.weight, &plan.bias, &plan.running_mean, &plan.running_var})
    for (const Tensor& x : *list)
      if (x.numel()) return x;
  STD_TORCH_CHECK(!plan.weight.empty(), "avfast.scan_batchnorm: expected at least one layer");
  return plan.weight.front();
}

std::mutex mutex;
std::unordered_map<int64_t, std::unique_ptr<Plan>> plans;
int64_t next_plan = 1;

}  // namespace

Tensors4 bn_scan(
    std::vector<Tensor> weight, std::vector<Tensor> bias, std::vector<Tensor> running_mean, std::vector<Tensor> running_var,
    double threshold) {
  Plan plan{std::move(weight), std::move(bias), std::move(running_mean), std::move(running_var), {}, {}, 0, 0};
  for (auto* list : {&plan.weight, &plan.bias, &plan.running_mean, &plan.running_var})
    for (Tensor& x : *list)
      if (!x.is_contiguous()) x = torch::stable::contiguous(x);
  return run(plan, anchor_of(plan), threshold);
}

int64_t bn_scan_plan(
    std::vector<Tensor> weight, std::vector<Tensor> bias, std::vector<Tensor> running_mean, std::vector<Tensor> running_var) {
  auto plan = std::make_unique<Plan>(
      Plan{std::move(weight), std::move(bias), std::move(running_mean), std::move(running_var), {}, {}, 0, 0});
  refresh(*plan);
  const std::lock_guard<std::mutex> lock(mutex);
  plans.emplace(next_plan, std::move(plan));
  return next_plan++;
}

Tensors4 bn_scan_planned(Tensor anchor, int64_t id, double threshold) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = plans.find(id);
  STD_TORCH_CHECK(found != plans.end(), "avfast.scan_batchnorm: plan: expected a live plan, got number ", id);
  return run(*found->second, anchor, threshold);
}

void bn_scan_release(Tensor, int64_t id) {
  const std::lock_guard<std::mutex> lock(mutex);
  plans.erase(id);
}

}  // namespace avfast
