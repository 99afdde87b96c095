// The batch-norm launchers with flat arguments, for ctypes. Compiled with all kernels/batch_norm/*_cuda.cu.
#include "../../kernels/batch_norm/activation_walk.cuh"

using namespace avfast;

extern "C" {

struct Shape {
  int64_t samples, channels, positions;
  int32_t order, dtype;
};

void emulator_descending(bool on) { emulator::machine.descending = on; }
int64_t emulator_launches() { return emulator::machine.launches; }

static Activation activation(const Shape& s) {
  return {s.samples, s.channels, s.positions, static_cast<Activation::Order>(s.order), static_cast<DType>(s.dtype)};
}

// count, segments, samples_per_slice, width, tile_packs, blocks
void cut(const Shape* s, const void* data, int64_t* out) {
  const Slices c = slice(activation(*s), {data});
  const int64_t facts[] = {c.count, c.segments, c.samples_per_slice, c.width, c.tile_packs, c.blocks()};
  std::copy(std::begin(facts), std::end(facts), out);
}

int scan(
    const BnLayer* layers, int64_t num_layers, int64_t max_channels, float threshold, uint8_t* flags, float* score,
    float* live, int32_t* counts) {
  return bn_scan_cuda({layers, num_layers, max_channels, threshold, flags, score, live, counts}, nullptr);
}

int64_t stats_workspace(const Shape* s) { return channel_stats_cuda_workspace(activation(*s)); }
int stats(
    const Shape* s, const void* x, double threshold, double* mean, double* var, int64_t* zeros, int64_t* dead,
    void* workspace) {
  return channel_stats_cuda({activation(*s), x, threshold, mean, var, zeros, dead}, workspace, nullptr);
}

int64_t blended_fwd_workspace(const Shape* s) { return blended_bn_fwd_cuda_workspace(activation(*s)); }
int blended_fwd(
    const Shape* s, const BlendedBnParams* p, double eps, bool relu, const void* x, void* y, void* mean, void* var,
    void* workspace) {
  return blended_bn_fwd_cuda({activation(*s), *p, eps, relu, x, y, mean, var}, workspace, nullptr);
}

int64_t blended_bwd_workspace(const Shape* s) { return blended_bn_bwd_cuda_workspace(activation(*s)); }
int blended_bwd(
    const Shape* s, const BlendedBnParams* p, double eps, bool relu, const void* grad, const void* x, const void* mean,
    const void* var, void* dx, void* const* d, void* workspace) {
  return blended_bn_bwd_cuda(
      {activation(*s), *p, eps, relu, grad, x, mean, var, dx, d[0], d[1], d[2], d[3], d[4]}, workspace, nullptr);
}

int affine_fwd(const Shape* s, bool relu, const void* x, const void* scale, const void* shift, void* y) {
  return channel_affine_fwd_cuda({activation(*s), relu, x, scale, shift, y}, nullptr);
}

int64_t affine_bwd_workspace(const Shape* s) { return channel_affine_bwd_cuda_workspace(activation(*s)); }
int affine_bwd(
    const Shape* s, bool relu, const void* grad, const void* x, const void* scale, const void* shift, void* dx,
    void* dscale, void* dshift, void* workspace) {
  return channel_affine_bwd_cuda(
      {activation(*s), relu, grad, x, scale, shift, dx, dscale, dshift}, workspace, nullptr);
}

}  // extern "C"
