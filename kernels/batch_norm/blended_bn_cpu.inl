// Two batch norms over one input, mixed by alpha, as the one batch norm they are (NOTES.md), with the activation fused.
//
// Cost model, rows: statistics and output of a few channels are made by the same task while they are in cache, so
// memory sees x once and y once forward, and g, x, dx once each backward: 2 and 3 passes where two layers, the mix and
// the ReLU take about 15 and more. Lanes need two reads of x, because a channel is spread over the whole tensor.

template <typename A>
struct BlendedParams {
  const A *weight, *bias, *new_weight, *new_bias, *alpha;
  bool per_channel;

  explicit BlendedParams(const BlendedBnParams& p)
      : weight(static_cast<const A*>(p.weight)),
        bias(static_cast<const A*>(p.bias)),
        new_weight(static_cast<const A*>(p.new_weight)),
        new_bias(static_cast<const A*>(p.new_bias)),
        alpha(static_cast<const A*>(p.alpha)),
        per_channel(p.alpha_per_channel) {}

  A mix(int64_t c) const { return alpha[per_channel ? c : 0]; }
  A gamma(int64_t c) const { return mix(c) * weight[c] + (1 - mix(c)) * new_weight[c]; }
  A beta(int64_t c) const { return mix(c) * bias[c] + (1 - mix(c)) * new_bias[c]; }

  Affine<A> affine(int64_t c, A mean, A var, double eps) const {
    return {mean, A(double(gamma(c)) / std::sqrt(double(var) + eps)), beta(c)};
  }
};

inline void blended_bn_fwd_cpu(const BlendedBnFwdArgs& args, const Parallel& parallel) {
  with_type(args.x.dtype, [&](auto type) {
    with_relu(args.relu, [&](auto relu) {
      using T = decltype(type);
      using A = Acc<T>;
      constexpr bool RELU = decltype(relu)::value;
      const Activation& a = args.x;
      const BlendedParams<A> params(args.params);
      const T* x = static_cast<const T*>(args.data);
      T* y = static_cast<T*>(args.y);
      A* mean = static_cast<A*>(args.mean);
      A* var = static_cast<A*>(args.var);
      if (a.order == Activation::rows) {
        const int64_t block = channels_per_block<T>(a);
        for_tasks(parallel, a.channels, a.numel(), [&](int64_t begin, int64_t end) {
          Scratch<ChannelSums> sums(block);
          Scratch<Affine<A>> f(block);
          for (int64_t at = begin; at < end; at += block) {
            const int64_t stop = std::min(at + block, end);
            reduce_rows<false>(x, a, at, stop, 0, a.samples, 0, sums.data);
            for (int64_t c = at; c < stop; ++c) {
              mean[c] = A(sums[c - at].moments.average());
              var[c] = A(sums[c - at].moments.var());
              f[c - at] = params.affine(c, mean[c], var[c], args.eps);
            }
            for_rows(a, at, stop, [&](int64_t row, int64_t c) {
              affine_row<RELU>(x + row, y + row, a.positions, f[c - at]);
            });
          }
        });
        return;
      }
      const int64_t channels = a.channels;
      Scratch<A> f(3 * channels);
      lane_stats<false>(a, x, 0, parallel, [&](int64_t c, const ChannelSums& sums) {
        mean[c] = A(sums.moments.average());
        var[c] = A(sums.moments.var());
        const Affine<A> one = params.affine(c, mean[c], var[c], args.eps);
        f[c] = one.center;
        f[channels + c] = one.scale;
        f[2 * channels + c] = one.shift;
      });
      for_position_blocks(a, parallel, [&](int64_t at, int64_t n) {
        affine_lanes<RELU>(x + at, y + at, n, channels, f.data);
      });
    });
  });
}

inline void blended_bn_bwd_cpu(const BlendedBnBwdArgs& args, const Parallel& parallel) {
  with_type(args.x.dtype, [&](auto type) {
    with_relu(args.relu, [&](auto relu) {
      using T = decltype(type);
      using A = Acc<T>;
      constexpr bool RELU = decltype(relu)::value;
      const Activation& a = args.x;
      const BlendedParams<A> params(args.params);
      const T* x = static_cast<const T*>(args.data);
      const T* grad = static_cast<const T*>(args.grad);
      T* dx = static_cast<T*>(args.dx);
      const A* mean = static_cast<const A*>(args.mean);
      const A* var = static_cast<const A*>(args.var);
      const double count = double(a.per_channel());

      // From the two sums of a channel: every parameter's gradient, and the line that dx follows.
      auto finish = [&](int64_t c, const GradSums& sums) -> InputGrad<A> {
        const double rstd = 1 / std::sqrt(double(var[c]) + args.eps);
        const double s1 = sums.grad, s2 = count > 0 ? sums.grad_x * rstd : 0, alpha = params.mix(c);
        static_cast<A*>(args.dweight)[c] = A(alpha * s2);
        static_cast<A*>(args.dbias)[c] = A(alpha * s1);
        static_cast<A*>(args.dnew_weight)[c] = A((1 - alpha) * s2);
        static_cast<A*>(args.dnew_bias)[c] = A((1 - alpha) * s1);
        static_cast<A*>(args.dalpha)[c] = A((double(params.weight[c]) - params.new_weight[c]) * s2 +
                                            (double(params.bias[c]) - params.new_bias[c]) * s1);
        const double scale = double(params.gamma(c)) * rstd;
        return {A(scale), A(-scale * rstd * s2 / count), A(-scale * s1 / count)};
      };
      if (a.order == Activation::rows) {
        const int64_t block = std::max<int64_t>(channels_per_block<T>(a) / 2, 1);
        for_tasks(parallel, a.channels, a.numel(), [&](int64_t begin, int64_t end) {
          Scratch<GradSums> sums(block);
          Scratch<Affine<A>> f(block);
          Scratch<InputGrad<A>> d(block);
          for (int64_t at = begin; at < end; at += block) {
            const int64_t stop = std::min(at + block, end);
            for (int64_t c = at; c < stop; ++c) {
              f[c - at] = params.affine(c, mean[c], var[c], args.eps);
              sums[c - at] = {};
            }
            grad_sums_rows<RELU>(a, grad, x, at, stop, f.data, sums.data);
            for (int64_t c = at; c < stop; ++c) d[c - at] = finish(c, sums[c - at]);
            for_rows(a, at, stop, [&](int64_t row, int64_t c) {
              input_grad_row<RELU, true>(grad + row, x + row, dx + row, a.positions, f[c - at], d[c - at]);
            });
          }
        });
        return;
      }
      const int64_t channels = a.channels;
      Scratch<A> f(3 * channels), d(3 * channels);
      Scratch<GradSums> sums(channels);
      for (int64_t c = 0; c < channels; ++c) {
        const Affine<A> one = params.affine(c, mean[c], var[c], args.eps);
        f[c] = one.center;
        f[channels + c] = one.scale;
        f[2 * channels + c] = one.shift;
      }
      all_grad_sums_lanes<RELU>(a, grad, x, f.data, parallel, sums.data);
      for (int64_t c = 0; c < channels; ++c) {
        const InputGrad<A> one = finish(c, sums[c]);
        d[c] = one.grad_scale;
        d[channels + c] = one.slope;
        d[2 * channels + c] = one.offset;
      }
      for_position_blocks(a, parallel, [&](int64_t at, int64_t n) {
        input_grad_lanes<RELU, true>(grad + at, x + at, dx + at, n, channels, f.data, d.data);
      });
    });
  });
}
