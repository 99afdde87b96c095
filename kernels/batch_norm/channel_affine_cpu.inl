// y = act(scale (x - center) + shift) per channel, and the sums its backward needs.
//
// Blended batch norm is this with center = batch mean; channel_affine is this with center = 0. The sign of y, which the
// ReLU's backward needs, is recomputed from x by the same expression: nothing but x is kept.

template <typename A>
struct Affine {
  A center, scale, shift;
};

template <bool RELU, typename A>
inline V<A> affine_value(V<A> x, V<A> center, V<A> scale, V<A> shift) {
  const V<A> y = (x - center) * scale + shift;
  // Written so that NaN passes through, as torch's relu lets it.
  if constexpr (RELU) return select<A>(y < splat(A(0)), V<A>{}, y);
  return y;
}

template <bool RELU, typename A>
inline V<A> masked_grad(V<A> g, V<A> x, V<A> center, V<A> scale, V<A> shift) {
  if constexpr (RELU) return select<A>((x - center) * scale + shift > splat(A(0)), g, V<A>{});
  return g;
}

// dx = grad_scale * g' and, where CENTRED, + slope * (x - center) + offset. Not with a slope of 0: times NaN that is NaN.
template <typename A>
struct InputGrad {
  A grad_scale, slope, offset;
};

struct GradSums {
  double grad = 0, grad_x = 0;  // sum of g' and of g' (x - center)
};

// ------------------------------------------------------------------------------------------------- rows

// Calls f(offset of the row, channel) for channels [begin, end) of every sample, in the order of memory.
template <typename F>
inline void for_rows(const Activation& a, int64_t begin, int64_t end, F&& f) {
  for (int64_t n = 0; n < a.samples; ++n)
    for (int64_t c = begin; c < end; ++c) f((n * a.channels + c) * a.positions, c);
}

template <bool RELU, typename T>
inline void affine_row(const T* x, T* y, int64_t n, const Affine<Acc<T>>& f) {
  using A = Acc<T>;
  const V<A> center = splat(f.center), scale = splat(f.scale), shift = splat(f.shift);
  int64_t i = 0;
  for (; i + lanes_of<A> <= n; i += lanes_of<A>) store(y + i, affine_value<RELU, A>(load(x + i), center, scale, shift));
  if (i < n) store_part(y + i, affine_value<RELU, A>(load_part(x + i, n - i, A(0)), center, scale, shift), n - i);
}

// Sums of the masked gradient g', and of g' (x - center), over rows of one channel.
template <bool RELU, typename T>
struct GradRun {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>;
  Affine<A> f;
  int64_t n = 0, rows = 0;
  V<A> sg[4] = {}, sx[4] = {};

  void add(const T* grad, const T* x, int64_t count) {
    const V<A> center = splat(f.center), scale = splat(f.scale), shift = splat(f.shift);
    auto take = [&](int u, V<A> g, V<A> v) {
      const V<A> m = masked_grad<RELU, A>(g, v, center, scale, shift);
      sg[u] += m;
      sx[u] += m * (v - center);
    };
    int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes)
      for (int u = 0; u < 4; ++u) {
        const T *g = grad + i + u * lanes, *v = x + i + u * lanes;
        prefetch(g);
        prefetch(v);
        take(u, load(g), load(v));
      }
    for (int u = 0; u < 3 && i + lanes <= count; ++u, i += lanes) take(u, load(grad + i), load(x + i));
    if (i < count) take(3, load_part(grad + i, count - i, A(0)), load_part(x + i, count - i, A(0)));
    n += count;
    ++rows;
  }

  bool full(int64_t next_row) const { return n + next_row > run_elements || rows == 64; }

  void flush(GradSums* out) {
    out->grad += double(sum_lanes<A>((sg[0] + sg[1]) + (sg[2] + sg[3])));
    out->grad_x += double(sum_lanes<A>((sx[0] + sx[1]) + (sx[2] + sx[3])));
    *this = {f};
  }
};

template <bool RELU, typename T>
inline void grad_sums_row(const T* grad, const T* x, int64_t n, const Affine<Acc<T>>& f, GradSums* out) {
  GradRun<RELU, T> run{f};
  for (int64_t i = 0; i < n; i += run_elements) {
    run.add(grad + i, x + i, std::min(run_elements, n - i));
    run.flush(out);
  }
}

// Channels [begin, end) over all samples, in the two orders of reduce_rows.
template <bool RELU, typename T>
inline void grad_sums_rows(
    const Activation& a, const T* grad, const T* x, int64_t begin, int64_t end, const Affine<Acc<T>>* f, GradSums* sums) {
  if (a.positions < short_row) {
    for (int64_t c = begin; c < end; ++c) {
      GradRun<RELU, T> run{f[c - begin]};
      for (int64_t n = 0; n < a.samples; ++n) {
        const int64_t row = (n * a.channels + c) * a.positions;
        run.add(grad + row, x + row, a.positions);
        if (run.full(a.positions)) run.flush(&sums[c - begin]);
      }
      run.flush(&sums[c - begin]);
    }
    return;
  }
  for_rows(a, begin, end, [&](int64_t row, int64_t c) {
    grad_sums_row<RELU>(grad + row, x + row, a.positions, f[c - begin], &sums[c - begin]);
  });
}

template <bool RELU, bool CENTRED, typename T>
inline void input_grad_row(
    const T* grad, const T* x, T* dx, int64_t n, const Affine<Acc<T>>& f, const InputGrad<Acc<T>>& d) {
  using A = Acc<T>;
  const V<A> center = splat(f.center), scale = splat(f.scale), shift = splat(f.shift);
  auto value = [&](V<A> g, V<A> v) -> V<A> {
    const V<A> own = masked_grad<RELU, A>(g, v, center, scale, shift) * d.grad_scale;
    if constexpr (CENTRED) return own + ((v - center) * d.slope + d.offset);
    return own;
  };
  int64_t i = 0;
  for (; i + lanes_of<A> <= n; i += lanes_of<A>) store(dx + i, value(load(grad + i), load(x + i)));
  if (i < n) store_part(dx + i, value(load_part(grad + i, n - i, A(0)), load_part(x + i, n - i, A(0))), n - i);
}

// ------------------------------------------------------------------------------------------------ lanes
// Per-channel factors come as arrays: Affine[3][C] and InputGrad[3][C], in the order of the structs' members.


constexpr int64_t lane_tile = 16;  // positions that share one loading of the per-channel factors

// Calls f(j, n, s, stop) for tiles of positions [s, stop) and n channels from j on, memory in order tile by tile.
template <typename A, typename F>
inline void for_lane_tiles(int64_t positions, int64_t c, F&& f) {
  for (int64_t s = 0; s < positions; s += lane_tile)
    for_lanes<A>(c, [&](int64_t j, int64_t n) { f(j, n, s, std::min(s + lane_tile, positions)); });
}

template <bool RELU, typename T>
inline void affine_lanes(const T* x, T* y, int64_t positions, int64_t c, const Acc<T>* f) {
  using A = Acc<T>;
  for_lane_tiles<A>(positions, c, [&](int64_t j, int64_t n, int64_t s, int64_t stop) {
    const V<A> center = load_n(f + j, n), scale = load_n(f + c + j, n), shift = load_n(f + 2 * c + j, n);
    for (; s < stop; ++s) store_n(y + s * c + j, affine_value<RELU, A>(load_n(x + s * c + j, n), center, scale, shift), n);
  });
}

// Sums of all channels, which stay in the first cache: sums[2][padded].
template <bool RELU, typename T>
inline void add_grad_positions(
    const T* grad, const T* x, int64_t positions, int64_t c, const Acc<T>* f, Acc<T>* sums, int64_t padded) {
  using A = Acc<T>;
  for_lane_tiles<A>(positions, c, [&](int64_t j, int64_t n, int64_t s, int64_t stop) {
    const V<A> center = load_n(f + j, n), scale = load_n(f + c + j, n), shift = load_n(f + 2 * c + j, n);
    V<A> sg = {}, sx = {};
    for (; s < stop; ++s) {
      const T *g = grad + s * c + j, *p = x + s * c + j;
      prefetch(g, lane_tile * c * int64_t(sizeof(T)));
      prefetch(p, lane_tile * c * int64_t(sizeof(T)));
      const V<A> v = load_n(p, n);
      const V<A> m = masked_grad<RELU, A>(load_n(g, n), v, center, scale, shift);
      sg += m;
      sx += m * (v - center);
    }
    store(sums + j, load(sums + j) + sg);
    store(sums + padded + j, load(sums + padded + j) + sx);
  });
}

template <bool RELU, typename T>
inline void grad_sums_lanes(
    const T* grad, const T* x, int64_t positions, int64_t c, const Acc<T>* f, Scratch<Acc<T>>& sums, int64_t padded,
    GradSums* out) {
  std::memset(sums.data, 0, size_t(2 * padded) * sizeof(Acc<T>));
  add_grad_positions<RELU>(grad, x, positions, c, f, sums.data, padded);
  for (int64_t j = 0; j < c; ++j) out[j] = {double(sums[j]), double(sums[padded + j])};
}

template <bool RELU, bool CENTRED, typename T>
inline void input_grad_lanes(
    const T* grad, const T* x, T* dx, int64_t positions, int64_t c, const Acc<T>* f, const Acc<T>* d) {
  using A = Acc<T>;
  for_lane_tiles<A>(positions, c, [&](int64_t j, int64_t n, int64_t s, int64_t stop) {
    const V<A> center = load_n(f + j, n), scale = load_n(f + c + j, n), shift = load_n(f + 2 * c + j, n);
    const V<A> grad_scale = load_n(d + j, n), slope = load_n(d + c + j, n), offset = load_n(d + 2 * c + j, n);
    for (; s < stop; ++s) {
      const V<A> v = load_n(x + s * c + j, n);
      const V<A> own = masked_grad<RELU, A>(load_n(grad + s * c + j, n), v, center, scale, shift) * grad_scale;
      if constexpr (CENTRED) store_n(dx + s * c + j, own + ((v - center) * slope + offset), n);
      else store_n(dx + s * c + j, own, n);
    }
  });
}

// Positions in blocks, for the two lane kernels that have no sums to combine.
template <typename F>
inline void for_position_blocks(const Activation& a, const Parallel& parallel, F&& body) {
  const int64_t total = a.samples * a.positions;
  const int64_t blocks = (total + lane_block_positions - 1) / lane_block_positions;
  for_tasks(parallel, blocks, a.numel(), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * lane_block_positions, last = std::min(end * lane_block_positions, total);
    body(first * a.channels, last - first);
  });
}

template <bool RELU, typename T>
inline void all_grad_sums_lanes(
    const Activation& a, const T* grad, const T* x, const Acc<T>* f, const Parallel& parallel, GradSums* out) {
  const int64_t c = a.channels, total = a.samples * a.positions;
  const int64_t blocks = (total + lane_block_positions - 1) / lane_block_positions;
  Scratch<GradSums> parts(blocks * c);
  for_tasks(parallel, blocks, a.numel(), [&](int64_t begin, int64_t end) {
    const int64_t padded = (c + lanes_of<Acc<T>> - 1) / lanes_of<Acc<T>> * lanes_of<Acc<T>>;
    Scratch<Acc<T>> sums(2 * padded);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t at = b * lane_block_positions, n = std::min(lane_block_positions, total - at);
      grad_sums_lanes<RELU>(grad + at * c, x + at * c, n, c, f, sums, padded, parts.data + b * c);
    }
  });
  for (int64_t j = 0; j < c; ++j) {
    out[j] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      out[j].grad += parts[b * c + j].grad;
      out[j].grad_x += parts[b * c + j].grad_x;
    }
  }
}

// -------------------------------------------------------------------------------------------- launchers

template <typename F>
inline void with_relu(bool relu, F&& f) {
  if (relu) f(std::true_type{});
  else f(std::false_type{});
}

inline void channel_affine_fwd_cpu(const ChannelAffineFwdArgs& args, const Parallel& parallel) {
  with_type(args.x.dtype, [&](auto type) {
    with_relu(args.relu, [&](auto relu) {
      using T = decltype(type);
      using A = Acc<T>;
      constexpr bool RELU = decltype(relu)::value;
      const Activation& a = args.x;
      const T* x = static_cast<const T*>(args.data);
      T* y = static_cast<T*>(args.y);
      const A* scale = static_cast<const A*>(args.scale);
      const A* shift = static_cast<const A*>(args.shift);
      if (a.order == Activation::rows) {
        for_tasks(parallel, a.samples * a.channels, a.numel(), [&](int64_t begin, int64_t end) {
          for (int64_t r = begin; r < end; ++r) {
            const int64_t c = r % a.channels;
            affine_row<RELU>(x + r * a.positions, y + r * a.positions, a.positions, {A(0), scale[c], shift[c]});
          }
        });
      } else {
        Scratch<A> f(3 * a.channels);
        std::copy(scale, scale + a.channels, f.data + a.channels);
        std::copy(shift, shift + a.channels, f.data + 2 * a.channels);
        for_position_blocks(a, parallel, [&](int64_t at, int64_t n) {
          affine_lanes<RELU>(x + at, y + at, n, a.channels, f.data);
        });
      }
    });
  });
}

inline void channel_affine_bwd_cpu(const ChannelAffineBwdArgs& args, const Parallel& parallel) {
  with_type(args.x.dtype, [&](auto type) {
    with_relu(args.relu, [&](auto relu) {
      using T = decltype(type);
      using A = Acc<T>;
      constexpr bool RELU = decltype(relu)::value;
      const Activation& a = args.x;
      const T* x = static_cast<const T*>(args.data);
      const T* grad = static_cast<const T*>(args.grad);
      T* dx = static_cast<T*>(args.dx);
      const A* scale = static_cast<const A*>(args.scale);
      const A* shift = static_cast<const A*>(args.shift);
      A* dscale = static_cast<A*>(args.dscale);
      A* dshift = static_cast<A*>(args.dshift);
      if (a.order == Activation::rows) {
        for_tasks(parallel, a.channels, a.numel(), [&](int64_t begin, int64_t end) {
          Scratch<GradSums> sums(end - begin);
          for_rows(a, begin, end, [&](int64_t row, int64_t c) {
            const Affine<A> f{A(0), scale[c], shift[c]};
            grad_sums_row<RELU>(grad + row, x + row, a.positions, f, &sums[c - begin]);
            input_grad_row<RELU, false>(grad + row, x + row, dx + row, a.positions, f, {scale[c], A(0), A(0)});
          });
          for (int64_t c = begin; c < end; ++c) {
            dscale[c] = A(sums[c - begin].grad_x);
            dshift[c] = A(sums[c - begin].grad);
          }
        });
        return;
      }
      const int64_t c = a.channels;
      Scratch<A> f(3 * c), d(3 * c);
      std::copy(scale, scale + c, f.data + c);
      std::copy(shift, shift + c, f.data + 2 * c);
      std::copy(scale, scale + c, d.data);
      Scratch<GradSums> sums(c);
      all_grad_sums_lanes<RELU>(a, grad, x, f.data, parallel, sums.data);
      for (int64_t j = 0; j < c; ++j) {
        dscale[j] = A(sums[j].grad_x);
        dshift[j] = A(sums[j].grad);
      }
      for_position_blocks(a, parallel, [&](int64_t at, int64_t n) {
        input_grad_lanes<RELU, false>(grad + at, x + at, dx + at, n, c, f.data, d.data);
      });
    });
  });
}
